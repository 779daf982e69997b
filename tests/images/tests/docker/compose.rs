//! `docker compose` with a project of four services.

use crate::client::Docker;
use naru_image_tests::harness::text;

const PROJECT: &str = r#"
name: shop
services:
  db:
    image: busybox
    command: sh -c 'mkdir -p /data/www; [ -f /data/www/rows ] || echo 1 > /data/www/rows; exec httpd -f -p 5432 -h /data/www'
    init: true
    volumes: [rows:/data]
    networks: [back]
    healthcheck:
      test: ["CMD-SHELL", "wget -q -O- http://127.0.0.1:5432/rows"]
      interval: 300ms
      timeout: 5s
      retries: 20
  worker:
    image: busybox
    command: sh -c 'while wget -q -O- http://db:5432/rows > /tmp/got; do echo worked; sleep 1; done'
    depends_on: {db: {condition: service_healthy}}
    networks: [back]
    restart: unless-stopped
  web:
    build: ./web
    init: true
    volumes: ["./site:/site:ro"]
    networks: {front: {aliases: [site]}, back: {}}
    ports: ["127.0.0.1::80"]
    depends_on: [worker]
    env_file: [web.env]
  proxy:
    image: busybox
    entrypoint: [sh, -c]
    command: ["mkdir -p /tmp/p/cgi-bin; printf '#!/bin/sh\\necho; wget -q -O- http://site/\\n' > /tmp/p/cgi-bin/get; chmod +x /tmp/p/cgi-bin/get; exec httpd -f -p 8000 -h /tmp/p"]
    ports: ["127.0.0.1::8000"]
    networks: [front]
    depends_on: [web]
volumes: {rows: {}}
networks: {front: {}, back: {internal: true}}
"#;

#[test]
fn a_project_comes_up_survives_the_daemon_and_goes_down() {
    let mut docker = Docker::start();
    let here = tempfile::tempdir().unwrap();
    std::fs::write(here.path().join("compose.yaml"), PROJECT).unwrap();
    std::fs::create_dir(here.path().join("site")).unwrap();
    std::fs::write(here.path().join("site/index.html"), "the shop\n").unwrap();
    std::fs::create_dir(here.path().join("web")).unwrap();
    let dockerfile = "FROM busybox\nCMD [\"httpd\", \"-f\", \"-p\", \"80\", \"-h\", \"/site\"]\n";
    std::fs::write(here.path().join("web/Dockerfile"), dockerfile).unwrap();
    std::fs::write(here.path().join("web.env"), "FROM_FILE=yes\n").unwrap();
    let compose = |docker: &Docker, args: &[&str]| {
        let output = docker.command("docker-compose", args).current_dir(here.path()).output().unwrap();
        assert!(output.status.success(), "docker compose {args:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    compose(&docker, &["up", "-d", "--wait"]);
    let shown = compose(&docker, &["ps", "--format", "{{.Service}} {{.State}} {{.Health}}"]);
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert!(shown.contains("db running healthy"), "{shown}");
    assert_eq!(compose(&docker, &["exec", "-T", "web", "sh", "-c", "echo $FROM_FILE"]), "yes\n");
    let port = compose(&docker, &["port", "proxy", "8000"]);
    let port = format!("{}/cgi-bin/get", port.trim().rsplit(':').next().unwrap());
    let page = |docker: &Docker| {
        let output = std::process::Command::new("curl")
            .args(["-s", "--noproxy", "*", "-m", "5", &format!("http://127.0.0.1:{port}")])
            .output()
            .unwrap();
        let _ = docker;
        String::from_utf8_lossy(&output.stdout).contains("the shop").then_some(())
    };
    docker.until("the page through the proxy", || page(&docker));
    docker.until("work", || compose(&docker, &["logs", "worker"]).contains("worked").then_some(()));

    let web = compose(&docker, &["port", "web", "80"]);
    let web = web.trim().rsplit(':').next().unwrap().to_owned();
    docker.daemon.kill();
    // Who asks for names waits for it; what is published is served.
    assert_eq!(docker.curl(&web).as_deref(), Some("the shop\n"), "nobody notices that the daemon is dead");
    docker.daemon.start_again();
    docker.until("the page again", || page(&docker));
    compose(&docker, &["exec", "-T", "db", "sh", "-c", "echo 2 > /data/www/rows"]);
    // Nothing has changed, so nothing is made again.
    let before = compose(&docker, &["ps", "-q"]);
    compose(&docker, &["up", "-d", "--wait"]);
    assert_eq!(compose(&docker, &["ps", "-q"]), before);
    compose(&docker, &["up", "-d", "--force-recreate", "--wait", "db"]);
    assert_eq!(compose(&docker, &["exec", "-T", "db", "cat", "/data/www/rows"]), "2\n", "the volume is kept");
    compose(&docker, &["restart", "web"]);
    docker.until("the page after a restart", || page(&docker));
    compose(&docker, &["stop", "-t", "1", "worker"]);
    compose(&docker, &["down", "-v", "-t", "1"]);
    assert_eq!(docker.ok(&["ps", "-aq"]), "");
    assert_eq!(docker.ok(&["volume", "ls", "-q"]), "");
    assert!(!docker.ok(&["network", "ls"]).contains("shop"));
    docker.daemon.destroy();
}
