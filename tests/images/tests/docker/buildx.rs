//! BuildKit's protocol, as the stock `docker buildx` speaks it.

use crate::client::Docker;
use naru_image_tests::harness::{text, tool};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// `docker` with its plugin, and without the request for the classic builder.
fn command(docker: &Docker, args: &[&str]) -> Command {
    let plugins = docker.daemon.dir.path().join("docker-config/cli-plugins");
    std::fs::create_dir_all(&plugins).unwrap();
    let plugin = plugins.join("docker-buildx");
    if !plugin.exists() {
        std::os::unix::fs::symlink(tool("docker-buildx"), plugin).unwrap();
    }
    let mut command = docker.command("docker", args);
    command.env_remove("DOCKER_BUILDKIT").env("BUILDKIT_PROGRESS", "plain");
    command
}

fn run(docker: &Docker, args: &[&str]) -> Output {
    command(docker, args).output().unwrap()
}

fn ok(docker: &Docker, args: &[&str]) -> String {
    let output = run(docker, args);
    assert!(output.status.success(), "docker {args:?}: {}", text(&output));
    text(&output)
}

fn fails(docker: &Docker, args: &[&str]) -> String {
    let output = run(docker, args);
    assert!(!output.status.success(), "docker {args:?} should fail: {}", text(&output));
    text(&output)
}

fn write(directory: &Path, name: &str, content: &str) {
    std::fs::create_dir_all(directory.join(name).parent().unwrap()).unwrap();
    std::fs::write(directory.join(name), content).unwrap();
}

#[test]
fn buildx_builds_sends_files_and_takes_results() {
    let docker = Docker::start();
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name).display().to_string();
    write(
        here.path(),
        "context/Dockerfile",
        "# syntax=docker/dockerfile:1\nFROM busybox AS first\nARG WORD\nRUN echo $WORD > /word\n\
         RUN --mount=type=secret,id=token md5sum < /run/secrets/token > /sum\n\
         FROM busybox\nCOPY --from=first /word /sum /got/\nCOPY --from=extra more /got/more\nCOPY . /context\n\
         CMD [\"cat\", \"/got/word\", \"/got/more\"]\n",
    );
    write(here.path(), "context/file", "of the context\n");
    write(here.path(), "context/deep/ly/nested", "x\n");
    write(here.path(), "context/left.log", "not sent\n");
    write(here.path(), "context/deep/kept.log", "sent\n");
    write(here.path(), "context/.dockerignore", "# comment\n**/*.log\n!deep/kept.log\n");
    std::os::unix::fs::symlink("file", here.path().join("context/link")).unwrap();
    // More than is asked for ahead, in one file and in many.
    write(here.path(), "context/large", &"0123456789abcdef".repeat(1 << 20));
    for number in 0..200 {
        write(here.path(), &format!("context/many/{number}"), &number.to_string());
    }
    write(here.path(), "extra/more", "from another directory\n");
    write(here.path(), "token", "s3cret");
    let build = |more: &[&str]| {
        let token = format!("id=token,src={}", at("token"));
        let extra = format!("extra={}", at("extra"));
        let mut args =
            vec!["build", "--build-arg", "WORD=said", "--secret", &token, "--build-context", &extra];
        args.extend(more);
        let context = at("context");
        args.push(&context);
        ok(&docker, &args)
    };

    let shown = build(&["-t", "made:1", "-t", "made:2", "--iidfile", &at("id")]);
    assert!(shown.contains("naming to made:2 done") && shown.contains("RUN echo $WORD"), "{shown}");
    assert_eq!(docker.ok(&["run", "--rm", "made:1"]), "said\nfrom another directory");
    let id = std::fs::read_to_string(at("id")).unwrap();
    assert_eq!(docker.inspect("made:2", "{{.Id}}"), id);
    let list = "cd /context; ls -d left.log deep/kept.log link many/199 Dockerfile 2>&1; readlink link; md5sum < large";
    let listed = docker.ok(&["run", "--rm", &id, "sh", "-c", list]);
    assert!(listed.contains("left.log: No such file") && listed.contains("deep/kept.log\n"), "{listed}");
    assert!(listed.contains("many/199\n") && listed.contains("\nfile\n"), "{listed}");
    let sum = Command::new("sh").args(["-c", &format!("md5sum < {}", at("context/large"))]).output().unwrap();
    assert!(listed.contains(text(&sum).trim()), "{listed}");
    let sum = Command::new("sh").args(["-c", &format!("md5sum < {}", at("token"))]).output().unwrap();
    assert_eq!(docker.ok(&["run", "--rm", &id, "cat", "/got/sum"]), text(&sum).trim());

    // Nothing changed: every step is taken from the cache. Each kind of output, with what it was asked of.
    let again = build(&["-o", &format!("type=local,dest={}", at("out"))]);
    assert!(again.matches("CACHED").count() >= 5, "{again}");
    assert_eq!(std::fs::read_to_string(at("out/got/word")).unwrap(), "said\n");
    assert_eq!(std::fs::read_link(at("out/context/link")).unwrap(), Path::new("file"));
    build(&["-o", &format!("type=tar,dest={}", at("files.tar"))]);
    let listed = Command::new("tar").args(["-tf", &at("files.tar")]).output().unwrap();
    assert!(text(&listed).contains("got/more\n"));
    build(&["-t", "carried:1", "-o", &format!("type=oci,dest={}", at("oci.tar"))]);
    docker.ok(&["load", "-i", &at("oci.tar")]);
    assert_eq!(docker.ok(&["run", "--rm", "carried:1"]), "said\nfrom another directory");
    build(&["--metadata-file", &at("told.json"), "-t", "made:3"]);
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(at("told.json")).unwrap()).unwrap();
    assert_eq!(told["containerimage.digest"], id.as_str());

    // Pushed with the client's own login, and pulled with it as a base.
    let registry = docker.daemon.http().trim_start_matches("http://").to_owned();
    let name = format!("{registry}/team/web:1");
    assert!(fails(&docker, &["build", "--push", "-t", &name, &at("extra")]).contains("Dockerfile"));
    write(here.path(), "extra/Dockerfile", "FROM busybox\nCOPY more /more\n");
    assert!(
        fails(&docker, &["build", "--push", "-t", &name, &at("extra")]).contains("does not let us write")
    );
    ok(&docker, &["login", "-u", "naru", "-p", &docker.daemon.push_token(), &registry]);
    ok(&docker, &["build", "--push", "-t", &name, &at("extra")]);
    docker.ok(&["rmi", &name]);
    write(here.path(), "base/Dockerfile", &format!("FROM {name}\nRUN cat /more > /again\n"));
    let shown = ok(&docker, &["build", "--pull", "-t", "based:1", &at("base")]);
    assert!(shown.contains(&format!("pull {name} with the login")), "{shown}");
    assert_eq!(docker.ok(&["run", "--rm", "based:1", "cat", "/again"]), "from another directory");

    // Several platforms: an index, in the registry and as an archive.
    write(
        here.path(),
        "multi/Dockerfile",
        "FROM scratch\nARG TARGETARCH\nLABEL arch=$TARGETARCH\nCOPY Dockerfile /\n",
    );
    let name = format!("{registry}/team/multi:1");
    let platforms = "linux/amd64,linux/arm64";
    ok(&docker, &["buildx", "build", "--platform", platforms, "--push", "-t", &name, &at("multi")]);
    let shown = ok(&docker, &["buildx", "imagetools", "inspect", &name]);
    assert!(shown.contains("linux/amd64") && shown.contains("linux/arm64"), "{shown}");
    let archive = format!("type=oci,dest={}", at("multi.tar"));
    ok(&docker, &["buildx", "build", "--platform", platforms, "-t", "multi:1", "-o", &archive, &at("multi")]);
    let index = Command::new("tar").args(["-xOf", &at("multi.tar"), "index.json"]).output().unwrap();
    assert!(text(&index).contains("image.index.v1+json"), "{}", text(&index));
    docker.daemon.destroy();
}

#[test]
fn buildx_is_told_what_fails_and_what_is_not_done() {
    let docker = Docker::start();
    let here = tempfile::tempdir().unwrap();
    let place = here.path().display().to_string();
    write(here.path(), "Dockerfile", "FROM busybox\nRUN echo told >&2; exit 3\n");
    let failed = fails(&docker, &["build", &place]);
    assert!(
        failed.contains("told") && failed.contains("exit code 3") && failed.contains("Dockerfile:2:1"),
        "{failed}"
    );
    write(here.path(), "Dockerfile", "FRUM busybox\n");
    assert!(fails(&docker, &["build", &place]).contains("Dockerfile:1:1"));
    assert!(fails(&docker, &["build", "--check", &place]).contains("FRUM"));
    write(here.path(), "Dockerfile", "FROM busybox\nCOPY nosuch /\n");
    assert!(fails(&docker, &["build", &place]).contains("nosuch"));
    assert!(fails(&docker, &["build", "-f", &format!("{place}/none"), &place]).contains("none"));
    write(here.path(), "Dockerfile", "FROM busybox\n");
    for (flags, said) in [
        (&["--network", "host"][..], "--network host is not supported"),
        (&["--add-host", "a:1.2.3.4"], "--add-host"),
        (&["--no-cache-filter", "x"], "--no-cache-filter"),
        (&["--build-arg", "BUILDKIT_SYNTAX=example.org/other"], "example.org/other"),
        (&["-o", "type=image,compression=zstd"], "compression=zstd"),
    ] {
        let mut args = vec!["buildx", "build"];
        args.extend(flags);
        args.push(&place);
        let failed = fails(&docker, &args);
        assert!(failed.contains(said), "{failed}");
    }
    let cached =
        ok(&docker, &["--debug", "build", "--cache-to", "type=local,dest=/tmp", "-t", "made:1", &place]);
    assert!(cached.contains("--cache-to type=local is not used"), "{cached}");

    // A client that goes away takes its build with it.
    write(here.path(), "Dockerfile", "FROM busybox\nRUN echo begun; sleep 1000\n");
    // Not through the helper that ends what hangs: it is the client itself that is killed.
    let mut direct = Command::new(tool("docker-buildx"));
    direct.args(["build", &place]).stdout(Stdio::null()).stderr(Stdio::null());
    direct.env("DOCKER_HOST", format!("unix://{}", docker.socket().display()));
    direct.env("DOCKER_CONFIG", docker.daemon.dir.path().join("docker-config"));
    let mut direct = direct.spawn().unwrap();
    let builds = || docker.daemon.get("images.naru.dev");
    let is_sleeping = |it: &serde_json::Value| it["status"]["phase"] == "Building";
    docker.until("the build", || builds().iter().any(is_sleeping).then_some(()));
    direct.kill().unwrap();
    direct.wait().unwrap();
    docker.until("the end of the build", || (!builds().iter().any(is_sleeping)).then_some(()));
    docker.daemon.destroy();
}

#[test]
fn bake_and_compose_build_side_by_side() {
    let docker = Docker::start();
    let here = tempfile::tempdir().unwrap();
    write(here.path(), "app/Dockerfile", "FROM busybox\nARG WHO\nENV WHO=$WHO\nCMD echo I am $WHO\n");
    write(
        here.path(),
        "compose.yaml",
        "name: pair\nservices:\n  a: {build: {context: ./app, args: {WHO: a}}, image: 'pair-a:1'}\n  \
         b: {build: {context: ./app, args: {WHO: b}}}\n",
    );
    write(
        here.path(),
        "docker-bake.hcl",
        "group \"default\" { targets = [\"one\", \"two\"] }\n\
         target \"one\" {\n context = \"app\"\n args = { WHO = \"one\" }\n tags = [\"baked:1\"]\n}\n\
         target \"two\" {\n inherits = [\"one\"]\n args = { WHO = \"two\" }\n tags = [\"baked:2\"]\n}\n",
    );
    let _ = ok(&docker, &["buildx", "ls"]); // puts the plugin where compose looks
    let mut compose = docker.command("docker-compose", &["build"]);
    let output = compose.env_remove("DOCKER_BUILDKIT").current_dir(here.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(docker.ok(&["run", "--rm", "pair-a:1"]), "I am a");
    assert_eq!(docker.ok(&["run", "--rm", "pair-b"]), "I am b");
    let output = command(&docker, &["buildx", "bake"]).current_dir(here.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(docker.ok(&["run", "--rm", "baked:1"]), "I am one");
    assert_eq!(docker.ok(&["run", "--rm", "baked:2"]), "I am two");
    docker.daemon.destroy();
}
