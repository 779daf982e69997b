//! `docker build` through the classic endpoint, and compose services that are built.

use crate::client::Docker;
use naru_image_tests::harness::text;

#[test]
fn images_are_built_and_run() {
    let docker = Docker::start();
    let here = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| std::fs::write(here.path().join(name), content).unwrap();
    write(
        "Dockerfile",
        "FROM busybox AS first\nARG WORD\nRUN echo $WORD > /word\nFROM busybox\nCOPY --from=first /word /word\n\
                         COPY file /file\nHEALTHCHECK CMD test -f /word\nCMD [\"cat\", \"/word\", \"/file\"]\n",
    );
    write("file", "of the context\n");
    let place = here.path().display().to_string();
    let shown = docker.ok(&["build", "-t", "made:1", "--build-arg", "WORD=said", &place]);
    assert!(shown.contains("Successfully tagged made:1"), "{shown}");
    assert_eq!(docker.ok(&["run", "--rm", "made:1"]), "said\nof the context");
    assert!(docker.inspect("made:1", "{{json .Config.Healthcheck.Test}}").contains("test -f /word"));
    write("Dockerfile", "FROM busybox\nRUN echo told >&2; exit 3\n");
    let failed = docker.fails(&["build", "-t", "bad:1", &place]);
    assert!(failed.contains("told") && failed.contains("exit 3"), "{failed}");
    write("Dockerfile", "FRUM busybox\n");
    assert!(docker.fails(&["build", &place]).contains("Dockerfile:1"), "with its place");
    assert!(docker.fails(&["build", "--squash", &place]).contains("squash"));
    let output = docker.command("docker", &["images", "-q", "bad"]).output().unwrap();
    assert_eq!(text(&output), "");
    docker.daemon.destroy();
}
