use crate::logs;
use naru_actions_tests::ended;
use naru_actions_tests::harness::{Daemon, Repository, busybox, text};

const CI: &str = "on: push
jobs:
  on-the-host:
    runs-on: ubuntu-latest
    services:
      web:
        image: web:1
        ports: ['18080:80']
        options: >-
          --health-cmd \"wget -q -O /dev/null http://127.0.0.1/ready\"
          --health-interval 1s --health-timeout 5s --health-retries 30
    steps:
      - run: curl -fsS http://localhost:18080/ready
      - run: test '${{ job.services.web.ports['80'] }}' = 18080
  in-a-container:
    runs-on: ubuntu-latest
    container: {image: 'web:1', env: {WHERE: inside}}
    services:
      other: {image: 'web:1'}
    steps:
      - run: |
          for i in 1 2 3 4 5 6 7 8 9 10; do wget -q -O - http://other/ready && break; sleep 1; done
          echo \"I am $WHERE\"
          test ! -e /bin/bash
        shell: sh
  docker-actions:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: echo of-the-job > here
      - id: greet
        uses: ./greet
        with: {who: ann}
      - uses: docker://web:1
        with: {entrypoint: /bin/cat, args: here greet/action.yml}
      - run: echo \"the action said ${{ steps.greet.outputs.said }}\"
      - uses: ./built
        with: {args: one 'two words'}
      - uses: docker://web:1
        continue-on-error: true
        with: {entrypoint: /bin/sh, args: -c 'exit 7'}
";

const GREET: &str = "name: greet
inputs: {who: {default: nobody}}
runs:
  using: docker
  image: docker://web:1
  entrypoint: /bin/sh
  args:
    - -c
    - |
      echo \"hello ${{ inputs.who }} in $PWD\"; cat here; test ! -e /bin/bash
      echo \"said=$INPUT_WHO\" >> $GITHUB_OUTPUT
";

const BUILT: &str = "name: built
inputs: {args: {}}
runs: {using: docker, image: Dockerfile}
";

/// A server whose page comes a moment after its start: busybox alone, no C library.
const DOCKERFILE: &str = "FROM scratch
COPY bin /bin
ENV PATH=/bin
CMD [\"/bin/busybox\", \"sh\", \"-c\", \"mkdir -p /www /tmp; (sleep 1; echo ready > /www/ready) & exec httpd -f -p 80 -h /www\"]
";

#[test]
fn services_are_up_before_the_steps_and_a_job_runs_in_any_image() {
    let daemon = Daemon::start();
    let context = tempfile::Builder::new().prefix("naru-context-").tempdir().unwrap();
    let bin = context.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::copy(busybox(), bin.join("busybox")).unwrap();
    for program in ["sh", "wget", "httpd", "sleep", "mkdir", "test", "cat"] {
        std::os::unix::fs::symlink("busybox", bin.join(program)).unwrap();
    }
    std::fs::write(context.path().join("Dockerfile"), DOCKERFILE).unwrap();
    let built = daemon.naru(&["build", "-q", "-t", "web:1", &context.path().display().to_string()]);
    assert!(built.status.success(), "{}", text(&built));

    let shop = Repository::empty(&daemon, "shop");
    shop.write(".github/workflows/ci.yml", CI);
    shop.write("greet/action.yml", GREET);
    shop.write("built/action.yml", BUILT);
    shop.write("built/own", "of its own image\n");
    let dockerfile =
        "FROM web:1\nCOPY own /own\nENTRYPOINT [\"/bin/sh\", \"-c\", \"cat /own; echo $# $2\", \"sh\"]\n";
    shop.write("built/Dockerfile", dockerfile);
    shop.commit("workflows");
    shop.push();
    let run = ended(&daemon, "shop-main-1");
    let shown = logs(&daemon, &run);
    assert_eq!(run["status"]["phase"], "Succeeded", "{shown}\n{run:#}");
    assert!(shown.contains("I am inside"), "{shown}");
    for line in [
        "hello ann in /github/workspace",
        "of-the-job",
        "using: docker",
        "the action said ann",
        "of its own image",
        "2 two words",
        "failed with 7",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    daemon.destroy();
}
