//! The stock kubectl against the embedded API with real pods behind it.

use crate::harness::{Daemon, Repository, text};

#[test]
fn kubectl_shows_the_same_story_and_can_take_it_apart() {
    let daemon = Daemon::start();
    let page = Repository::page(&daemon);
    page.push();
    let all = text(&daemon.kubectl(&["get", "runs,images,releases,deployments,pods", "-A"]));
    for line in [
        "run.naru.dev/page-main-1",
        "image.naru.dev/page-main-1-web",
        "release.naru.dev/page-r1",
        "deployment.apps/page-web-r1",
        "Running",
    ] {
        assert!(all.contains(line), "`{line}` is missing in\n{all}");
    }
    let described = text(&daemon.kubectl(&["describe", "deployment", "page-web-r1"]));
    assert!(described.contains("1 desired | 1 updated | 1 total | 1 available"), "{described}");
    let described = text(&daemon.kubectl(&["describe", "pods", "-l", "naru.dev/app=page"]));
    assert!(described.contains("Started"), "events are missing in\n{described}");
    let logs = text(&daemon.kubectl(&["logs", "page-main-1-test"]));
    assert!(logs.contains("the workspace is at"), "{logs}");
    let output =
        daemon.kubectl(&["exec", "deploy/page-web-r1", "--", "/bin/busybox", "cat", "/www/index.html"]);
    let out = String::from_utf8_lossy(&output.stdout);
    assert_eq!(out, "version 1\n");

    let output = daemon.kubectl(&["exec", "deploy/page-web-r1", "--", "/bin/nothing"]);
    assert!(!output.status.success() && text(&output).contains("/bin/nothing"), "{}", text(&output));

    // What is deleted comes back, because it is declared.
    let pod = daemon
        .get("pods")
        .into_iter()
        .find(|it| it["metadata"]["name"].as_str().unwrap().starts_with("page-web-r1"))
        .unwrap()["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let output = daemon.kubectl(&["delete", "pod", &pod, "--wait=false"]);
    assert!(output.status.success(), "{}", text(&output));
    daemon.wait_for("another pod", "pods", |all| {
        all.iter()
            .any(|it| {
                let name = it["metadata"]["name"].as_str().unwrap();
                name.starts_with("page-web-r1")
                    && name != pod
                    && it["status"]["containerStatuses"][0]["ready"] == true
            })
            .then_some(())
    });
    daemon.destroy();
}

#[test]
fn objects_that_naru_did_not_write_run_just_the_same() {
    let daemon = Daemon::start();
    let page = Repository::page(&daemon);
    page.push();
    let image = daemon.get("images")[0]["status"]["reference"].as_str().unwrap().to_owned();
    let manifest = format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: greeting}}
data: {{index.html: \"from a config map\\n\"}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: hello}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: hello}}}}
  template:
    metadata: {{labels: {{app: hello}}}}
    spec:
      containers:
      - name: web
        image: {image}
        args: []
        ports: [{{containerPort: 8080}}]
        resources: {{limits: {{memory: 32Mi, cpu: 200m}}}}
        readinessProbe: {{httpGet: {{path: /index.html, port: 8080}}, periodSeconds: 1}}
        volumeMounts: [{{name: page, mountPath: /www}}]
      volumes: [{{name: page, configMap: {{name: greeting}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: hello}}
spec:
  selector: {{app: hello}}
  ports: [{{port: 80, targetPort: 8080}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: hello}}
spec:
  parentRefs: [{{name: naru}}]
  hostnames: [hello.test]
  rules: [{{backendRefs: [{{name: hello, port: 80}}]}}]
---
apiVersion: batch/v1
kind: Job
metadata: {{name: once}}
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
      - {{name: once, image: \"{image}\", command: [/bin/busybox, echo, done once]}}
"
    );
    let output = daemon.kubectl_with_input(&["apply", "-f", "-"], &manifest);
    assert!(output.status.success(), "{}", text(&output));
    let output = daemon.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    assert!(output.status.success(), "{}", text(&output));
    daemon.wait_for("the route", "httproutes", |_| {
        (daemon.curl("hello.test", "/index.html") == (200, "from a config map\n".into())).then_some(())
    });
    let output = daemon.kubectl(&["wait", "--for=condition=complete", "job/once", "--timeout=60s"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(text(&daemon.kubectl(&["logs", "job/once"])), "done once\n");
    let output = daemon.kubectl_with_input(&["delete", "-f", "-", "--wait=false"], &manifest);
    assert!(output.status.success(), "{}", text(&output));
    daemon.wait_for("everything to be gone", "pods", |all| {
        all.iter().all(|it| !it["metadata"]["name"].as_str().unwrap().starts_with("hello")).then_some(())
    });
    daemon.destroy();
}

#[test]
fn a_container_has_its_limits_and_few_rights() {
    let daemon = Daemon::start();
    let page = Repository::page(&daemon);
    page.write("naru.yaml", &crate::harness::APP.replace("replicas: 1", "replicas: 1\n    memory: 48Mi"));
    page.commit("with a limit");
    page.push();
    let sh = |script: &str| text(&daemon.naru(&["exec", "page", "--", "/bin/busybox", "sh", "-c", script]));
    let status = sh("/bin/busybox grep -E 'NoNewPrivs|Seccomp:|CapEff' /proc/1/status");
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    // CAP_SYS_ADMIN (bit 21) is not among what is left.
    let effective =
        status.lines().find(|it| it.starts_with("CapEff")).unwrap().split_whitespace().nth(1).unwrap();
    assert_eq!(u64::from_str_radix(effective, 16).unwrap() & (1 << 21), 0);
    // Its own server and this shell: nothing of the machine is seen.
    let processes: usize = sh("set -- /proc/[0-9]*; echo $#").trim().parse().unwrap();
    assert!(processes <= 3, "{processes} processes are visible");
    assert!(
        sh("/bin/busybox mount -t tmpfs x /mnt 2>&1; true").contains("ermi"),
        "mounting is not permitted"
    );
    assert!(sh("/bin/busybox cat /proc/kcore 2>&1 | /bin/busybox head -c 10; true").trim().len() < 80);
    let killed = sh("/bin/busybox sh -c 'x=a; while true; do x=$x$x; done' 2>&1; echo ended $?");
    assert!(!killed.contains("ended 0"), "the memory limit holds: {killed}");
    daemon.destroy();
}
