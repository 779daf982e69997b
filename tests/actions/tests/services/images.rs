//! `docker build` and `docker push` as steps, with the stock client and the socket that a job finds.

use naru_actions_tests::harness::{Daemon, Repository, text, tool};
use naru_actions_tests::{ended, secret};

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
          mkdir -p $RUNNER_TEMP/docker/cli-plugins
          ln -s @tools@/docker-buildx $RUNNER_TEMP/docker/cli-plugins/
          echo DOCKER_CONFIG=$RUNNER_TEMP/docker >> $GITHUB_ENV
          echo @tools@ >> $GITHUB_PATH
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
    let tools = tool("docker").parent().unwrap().display().to_string();
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
        let status = std::process::Command::new("curl")
            .args(["-s", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}", &url])
            .args(["-u", &format!("naru:{}", daemon.push_token())])
            .output()
            .unwrap();
        assert_eq!(text(&status), "200", "{shown}");
    }
    daemon.destroy();
}
