//! `docker build` and `docker push` as steps, with the stock client and the socket that a job finds.

use naru_actions_tests::harness::{Daemon, PATIENCE, Repository, text, tool};
use naru_actions_tests::{ended, in_background, secret};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

const WORKFLOW: &str = "on: push
jobs:
  images:
    runs-on: ubuntu-latest
    permissions: {contents: read, packages: write}
    env: {REGISTRY: '@registry@'}
    steps:
      - uses: actions/checkout@v4
      - name: The client
        run: |
          mkdir -p $RUNNER_TEMP/bin $RUNNER_TEMP/docker/cli-plugins
          curl -sSf --noproxy '*' -o $RUNNER_TEMP/bin/docker @tools@/docker
          curl -sSf --noproxy '*' -o $RUNNER_TEMP/docker/cli-plugins/docker-buildx @tools@/docker-buildx
          chmod +x $RUNNER_TEMP/bin/docker $RUNNER_TEMP/docker/cli-plugins/docker-buildx
          echo DOCKER_CONFIG=$RUNNER_TEMP/docker >> $GITHUB_ENV
          echo $RUNNER_TEMP/bin >> $GITHUB_PATH
      - run: docker build -t built-by-a-job:1 .
      - run: docker image inspect -f '{{json .Config.Cmd}}' built-by-a-job:1
      - run: docker run --rm built-by-a-job:1 || echo no containers
      - run: docker rmi built-by-a-job:1 || echo nothing removed
      - run: docker tag built-by-a-job:1 $REGISTRY/team/web:1
      - run: docker push $REGISTRY/team/web:1 || echo needs a login
      - run: printf %s \"$PUSH\" | docker login -u naru --password-stdin $REGISTRY
        env: {PUSH: '${{ secrets.PUSH }}'}
      - run: docker push $REGISTRY/team/web:1
      - run: docker buildx build --push -t $REGISTRY/team/web:2 .
      - run: printf %s \"$TOKEN\" | docker login -u job --password-stdin $REGISTRY
        env: {TOKEN: '${{ github.token }}'}
      - run: docker buildx build --push -t $REGISTRY/naru/shop/web:1 .
      - run: docker buildx build --push -t $REGISTRY/team/web:3 . || echo not ours
";

#[test]
fn steps_build_and_push_images_with_docker_and_start_nothing() {
    let daemon = Daemon::start();
    let registry = daemon.http().trim_start_matches("http://").to_owned();
    // Where the sources are may be hidden from jobs, as all of /tmp is: so the client comes over HTTP.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut serve = Command::new("python3");
    serve.args(["-m", "http.server", &port.to_string(), "--bind", &daemon.pod_host(), "--directory"]);
    serve.arg(tool("docker").parent().unwrap());
    let _serving = in_background(serve);
    let tools = format!("http://{}:{port}", daemon.pod_host());
    let began = Instant::now();
    while TcpStream::connect((daemon.pod_host(), port)).is_err() {
        assert!(began.elapsed() < PATIENCE, "python3 does not serve the client");
        std::thread::sleep(Duration::from_millis(20));
    }
    let shop = Repository::empty(&daemon, "shop");
    shop.write("readme", "a shop\n");
    shop.commit("the start");
    shop.push();
    secret(&daemon, &["shop", "PUSH"], &daemon.push_token());
    shop.write("Dockerfile", "FROM scratch\nCOPY readme /\nCMD [\"/readme\"]\n");
    let workflow = WORKFLOW.replace("@registry@", &registry).replace("@tools@", &tools);
    shop.write(".github/workflows/images.yml", &workflow);
    shop.commit("build an image");
    shop.push();
    let run = ended(&daemon, "shop-main-2");
    let shown = text(&daemon.naru(&["logs", "run/shop-main-2"]));
    assert_eq!(run["status"]["phase"], "Succeeded", "{shown}");
    assert!(shown.contains("[\"/readme\"]"), "{shown}");
    assert!(shown.contains("no containers") && shown.contains("`services:`"), "{shown}");
    assert!(shown.contains("nothing removed") && shown.contains("needs a login"), "{shown}");
    assert!(shown.contains("not ours"), "{shown}");
    for image in ["team/web/manifests/1", "team/web/manifests/2", "naru/shop/web/manifests/1"] {
        let url = format!("{}/v2/{image}", daemon.http());
        let status = Command::new("curl")
            .args(["-s", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}", &url])
            .args(["-u", &format!("naru:{}", daemon.push_token())])
            .output()
            .unwrap();
        assert_eq!(text(&status), "200", "{shown}");
    }
    daemon.destroy();
}
