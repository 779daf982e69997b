//! `naru build` as people use it, against a real daemon, with skopeo, kubectl and tar as the other side.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

mod image;
mod oracle;
mod platforms;

use image::Image;
use naru_image_tests::harness::{Daemon, text};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// A context with a busybox, which needs no registry.
fn context() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy("/bin/busybox", dir.path().join("busybox")).expect("busybox-static is installed");
    dir
}

const BASE: &str = "FROM scratch AS base\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\n";

fn write(dir: &Path, name: &str, content: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn build(daemon: &Daemon, dir: &Path, args: &[&str]) -> Output {
    daemon.naru(&[&["build"], args, &[&dir.display().to_string()]].concat())
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_uploaded_context_becomes_an_image_that_pods_run() {
    let daemon = Daemon::start();
    let dir = context();
    let at = |it: &str| dir.path().join("out").join(it).display().to_string();
    fs::create_dir(dir.path().join("out")).unwrap();
    write(
        dir.path(),
        "Dockerfile",
        &format!(
            "{BASE}ARG WHO=nobody\nCOPY src /srv\nRUN echo \"hello $WHO\" > /srv/greeting; cat /srv/greeting\nCMD [\"/bin/busybox\", \"cat\", \"/srv/greeting\"]\n"
        ),
    );
    write(dir.path(), ".dockerignore", "out\n**/*.md\n");
    write(dir.path(), "src/a.txt", "a");
    write(dir.path(), "src/notes.md", "no");
    fs::set_permissions(dir.path().join("src/a.txt"), fs::Permissions::from_mode(0o640)).unwrap();

    let oci = format!("type=oci,dest={}", at("web.oci"));
    let docker = format!("type=docker,dest={}", at("web.docker"));
    let tar = format!("type=tar,dest={}", at("web.tar"));
    let args = [
        "-t",
        "web:1",
        "--build-arg",
        "WHO=world",
        "--label",
        "team=shop",
        "-o",
        &oci,
        "-o",
        &docker,
        "-o",
        &tar,
        "-o",
        &at("files"),
        "--iidfile",
        &at("iid"),
    ];
    let output = build(&daemon, dir.path(), &args);
    assert!(output.status.success(), "{}", text(&output));
    let shown = String::from_utf8_lossy(&output.stderr);
    assert!(shown.contains("hello world") && shown.contains("RUN echo"), "{shown}");
    let digest = fs::read_to_string(at("iid")).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("web:1 {digest}\n"));

    // Other tools read what came out, and it is the same image.
    let inspect = run("skopeo", &["inspect", "--config", &format!("oci-archive:{}", at("web.oci"))]);
    assert!(inspect.contains(r#""team": "shop""#) || inspect.contains(r#""team":"shop""#), "{inspect}");
    let of_oci =
        run("skopeo", &["inspect", "--format", "{{.Digest}}", &format!("oci-archive:{}", at("web.oci"))]);
    assert_eq!(of_oci.trim(), digest);
    run(
        "skopeo",
        &["copy", &format!("docker-archive:{}", at("web.docker")), &format!("dir:{}", at("copied"))],
    );
    let listed = run("tar", &["-tvf", &at("web.tar")]);
    assert!(listed.contains("srv/greeting") && listed.contains("-rw-r----- 0/0"), "{listed}");
    assert!(!listed.contains("notes.md"), "{listed}");
    assert_eq!(fs::read_to_string(at("files/srv/greeting")).unwrap(), "hello world\n");

    // Nothing changed but a time: nothing is done again.
    write(dir.path(), "src/a.txt", "a");
    let again = build(&daemon, dir.path(), &["-q", "--build-arg", "WHO=world", "--label", "team=shop"]);
    assert_eq!(String::from_utf8_lossy(&again.stdout).trim(), digest, "{}", text(&again));

    // A pod runs it by the name that it was given.
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"greeter"},"spec":{"restartPolicy":"Never",
        "containers":[{"name":"web","image":"web:1","imagePullPolicy":"IfNotPresent"}]}}"#;
    let applied = daemon.kubectl_with_input(&["apply", "-f", "-"], pod);
    assert!(applied.status.success(), "{}", text(&applied));
    daemon.wait_for("the pod", "pods", |all| {
        all.iter()
            .any(|it| it["metadata"]["name"] == "greeter" && it["status"]["phase"] == "Succeeded")
            .then_some(())
    });
    assert_eq!(String::from_utf8_lossy(&daemon.kubectl(&["logs", "greeter"]).stdout), "hello world\n");

    // A build that fails says where, and is a failure to scripts.
    write(dir.path(), "Bad", &format!("{BASE}RUN echo before && exit 7\n"));
    let bad = build(&daemon, dir.path(), &["-f", &dir.path().join("Bad").display().to_string()]);
    let shown = String::from_utf8_lossy(&bad.stderr);
    assert_eq!(bad.status.code(), Some(1), "{shown}");
    assert!(
        shown.contains("Bad:4:1") && shown.contains("exit code 7") && shown.contains("| before"),
        "{shown}"
    );
    daemon.destroy();
}

/// Everything that a step can be given for its time, and nothing of it in the image.
#[test]
fn a_step_sees_its_mounts_and_leaves_no_trace_of_them() {
    let daemon = Daemon::start();
    let dir = context();
    write(dir.path(), "src/a.txt", "content of a\n");
    write(dir.path(), "token", "hush-hush-4711");
    let base = "FROM scratch AS base\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";
    let dockerfile = format!(
        r##"{base}FROM base AS files
COPY src /src
RUN echo made > /src/made
FROM base
WORKDIR /w
RUN --mount=type=bind,from=files,source=/src,target=/mnt/files cat /mnt/files/a.txt /mnt/files/made > bound && ! touch /mnt/files/x
RUN --mount=type=bind,source=src,target=ctx,rw touch ctx/new && ls ctx > listed
RUN --mount=type=bind,from=files,source=/src/a.txt,target=/one cat /one > single
RUN --mount=type=cache,id=c,target=/root/.cache/x,mode=0700 echo -n x >> /root/.cache/x/f
RUN --mount=type=cache,id=c,target=/other,sharing=locked echo -n y >> /other/f; cp /other/f cached
RUN --mount=type=cache,target=/seeded,from=files,source=/src cp /seeded/a.txt seeded
RUN --mount=type=secret,id=token,mode=0444 cat /run/secrets/token; stat -c %a /run/secrets/token > mode
RUN --mount=type=secret,id=token,env=TOKEN,target=/tok echo "${{#TOKEN}} $(cat /tok | wc -c)" > lengths
RUN --mount=type=secret,id=absent test ! -e /run/secrets/absent
RUN --mount=type=ssh test -S $SSH_AUTH_SOCK && echo $SSH_AUTH_SOCK > agent
RUN --mount=type=ssh,id=other test -z "$SSH_AUTH_SOCK"
RUN --mount=type=tmpfs,target=/scratch,size=64k grep -q '/scratch tmpfs' /proc/mounts && touch /scratch/a
RUN --network=none ls /sys/class/net > net
RUN <<EOF
echo "a script in $PWD" > heredoc
EOF
RUN <<'EOF'
#!/bin/awk -f
BEGIN {{ print "awk " 1+1 > "program" }}
EOF
RUN cat <<A > both && cat <<-"B" >> both
one $HOSTNAME_UNSET.
A
	two $TWO
	B
COPY <<-one <<"two" /docs/
	dir $PWD_UNSET.
one
raw $X
two
"##
    );
    write(dir.path(), "Dockerfile", &dockerfile);
    let secret = format!("id=token,src={}", dir.path().join("token").display());
    let keys = tempfile::tempdir().unwrap();
    let key = keys.path().join("key").display().to_string();
    run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key]);
    let ssh = format!("default={key}");
    let archive = dir.path().join("image.oci");
    let output = format!("type=oci,dest={}", archive.display());
    write(dir.path(), ".dockerignore", "image.oci\ntoken\n");
    let built =
        build(&daemon, dir.path(), &["-t", "mounts", "--secret", &secret, "--ssh", &ssh, "-o", &output]);
    let shown = String::from_utf8_lossy(&built.stderr).into_owned();
    assert!(built.status.success(), "{shown}");
    let image = Image::read(&archive);
    for (name, want) in [
        ("bound", "content of a\nmade\n"),
        ("listed", "a.txt\nnew\n"),
        ("single", "content of a\n"),
        ("cached", "xy"),
        ("seeded", "content of a\n"),
        ("mode", "444\n"),
        ("lengths", "14 14\n"),
        ("agent", "/run/buildkit/ssh_agent.0\n"),
        ("net", "lo\n"),
        ("heredoc", "a script in /w\n"),
        ("program", "awk 2\n"),
        ("both", "one .\ntwo $TWO\n"),
    ] {
        let want = format!("file 644 0:0 {want:?}");
        assert_eq!(image.tree.get(&format!("w/{name}")), Some(&want), "{name}: {shown}");
    }
    assert_eq!(image.tree["docs/one"], "file 644 0:0 \"dir .\\n\"");
    assert_eq!(image.tree["docs/two"], "file 644 0:0 \"raw $X\\n\"");
    for gone in ["mnt", "one", "root", "other", "seeded", "run", "tok", "scratch", "w/ctx", "dev"] {
        assert_eq!(image.tree.get(gone), None, "{gone} is left in the image");
    }

    // The secret is nowhere: not in the output, the log, the image, or any object that is left.
    let everything = [
        shown.clone(),
        image.config.to_string(),
        String::from_utf8_lossy(&image.layers.concat()).into_owned(),
        text(&daemon.kubectl(&["get", "all,images,secrets,events", "-A", "-o", "yaml"])),
        daemon.log(),
    ];
    for (index, text) in everything.iter().enumerate() {
        assert!(!text.contains("hush-hush"), "the secret is in number {index}");
    }
    assert!(shown.contains("***"), "{shown}");
    let secrets = text(&daemon.kubectl(&["get", "secrets", "-o", "name"]));
    assert!(!secrets.contains("build-"), "{secrets}");
    let grep = Command::new("grep")
        .args(["-rl", "hush-hush"])
        .arg(daemon.data_dir().join("builds"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&grep.stdout), "", "on the disk of the builder");

    // A secret that must be there, and a fetch that must not be.
    for (line, want) in [
        ("RUN --mount=type=secret,id=none,required true", "the secret `none` was not given"),
        ("ADD http://127.0.0.1:1/x /x", "only this machine may reach"),
        ("ADD http://169.254.169.254/latest /x", "only this machine may reach"),
        ("COPY .wh.x /y/", "hides another file"),
    ] {
        write(dir.path(), ".wh.x", "");
        write(dir.path(), "Dockerfile", &format!("{base}{line}\n"));
        let failed = build(&daemon, dir.path(), &[]);
        let shown = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(
            !failed.status.success() && shown.contains(want) && shown.contains("Dockerfile:4:1"),
            "{shown}"
        );
    }
    daemon.destroy();
}

/// What people do by hand when an image is too large, or worse.
#[test]
fn an_image_is_advised_and_its_parts_are_listed() {
    let home = tempfile::tempdir().unwrap();
    let credentials = home.path().join("config.json");
    let daemon = Daemon::start_in(
        tempfile::tempdir().unwrap(),
        &["--docker-config", &credentials.display().to_string()],
    );
    let dir = context();
    let key = format!("-----BEGIN {} KEY-----\n{}\n", "PRIVATE", "QUJD".repeat(20));
    write(dir.path(), "deploy.pem", &key);
    write(dir.path(), "big", &"0123456789abcdef".repeat(20 << 10));
    write(
        dir.path(),
        "app/package-lock.json",
        r#"{"lockfileVersion":3,"packages":{"node_modules/left-pad":{"version":"1.3.0"}}}"#,
    );
    write(dir.path(), "status", "Package: libc6\nStatus: install ok installed\nVersion: 2.36\n\n");
    write(dir.path(), "etc/os-release", "ID=debian\n");
    let dockerfile = format!(
        "{BASE}COPY big /srv/one\nCOPY big /srv/two\nCOPY big /tmp/gone\nCOPY deploy.pem /root/deploy.pem\n\
         RUN busybox rm /tmp/gone /root/deploy.pem && busybox mkdir -p /var/lib/apt/lists && busybox cp /srv/one /var/lib/apt/lists/x\n\
         COPY app /app\nCOPY status /var/lib/dpkg/status\nCOPY etc /etc\nENV API_TOKEN=4711\nEXPOSE 80\n"
    );
    write(dir.path(), "Dockerfile", &dockerfile);
    let built = build(&daemon, dir.path(), &["-q", "-t", "fat:1"]);
    assert!(built.status.success(), "{}", text(&built));

    let json = daemon.naru(&["image", "advise", "fat:1", "--json"]);
    let report: serde_json::Value =
        serde_json::from_slice(&json.stdout).unwrap_or_else(|_| panic!("{}", text(&json)));
    let advice = report["advice"].as_array().unwrap();
    let of = |rule: &str| advice.iter().filter(|it| it["rule"] == rule).collect::<Vec<_>>();
    let large = 320 << 10;
    assert_eq!(of("deleted-later")[0]["files"][0]["path"], "/tmp/gone", "{report:#}");
    assert!(of("deleted-later")[0]["savesBytes"].as_u64().unwrap() >= large);
    assert_eq!(of("package-cache")[0]["savesBytes"], large);
    // busybox, which is there twice, and the large file.
    assert!(of("duplicate")[0]["files"].to_string().contains("/srv/two (as /srv/one)"), "{report:#}");
    assert_eq!(of("secret").len(), 2, "{report:#}");
    assert!(of("root").len() == 1 && of("no-healthcheck").len() == 1);
    assert!(!report.to_string().contains("QUJD") && !report.to_string().contains("4711"), "a value is told");
    let shown = daemon.naru(&["image", "advise", "fat:1"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("together this saves"), "{}", text(&shown));

    let sbom = |format: &str| -> serde_json::Value {
        let output = daemon.naru(&["image", "sbom", "fat:1", "--format", format]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
    };
    let spdx = sbom("spdx");
    assert_eq!(spdx["spdxVersion"], "SPDX-2.3");
    for purl in ["pkg:deb/debian/libc6@2.36", "pkg:npm/left-pad@1.3.0"] {
        assert!(spdx["packages"].to_string().contains(purl), "{spdx:#}");
        assert!(sbom("cyclonedx")["components"].to_string().contains(purl));
    }

    // Where it comes from is signed, and can be fetched as any referrer; what is not built here is refused.
    let digest = report["digest"].as_str().unwrap();
    let verified = daemon.naru(&["image", "verify", "fat:1", "--json"]);
    let statement: serde_json::Value =
        serde_json::from_slice(&verified.stdout).unwrap_or_else(|_| panic!("{}", text(&verified)));
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    assert_eq!(statement["subject"][0]["digest"]["sha256"], digest.trim_start_matches("sha256:"));
    let url = format!("{}/v2/naru/attestations/referrers/{digest}", daemon.http());
    let referrers = run("curl", &["-sf", "-u", &format!("naru:{}", daemon.push_token()), &url]);
    assert!(referrers.contains("application/vnd.in-toto+json"), "{referrers}");

    // To a registry and back.
    let name = format!("{}/pushed/fat:1", daemon.http().trim_start_matches("http://"));
    use base64::Engine;
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("naru:{}", daemon.push_token()));
    let host = daemon.http().trim_start_matches("http://").to_owned();
    fs::write(&credentials, format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#)).unwrap();
    let pushed = build(&daemon, dir.path(), &["-t", &name, "--push"]);
    assert!(pushed.status.success(), "{}", text(&pushed));
    let inspected = run(
        "skopeo",
        &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &format!("docker://{name}")],
    );
    assert_eq!(inspected.trim(), digest);

    // The safe part as a patch that patch takes.
    write(dir.path(), "Dockerfile", "FROM fat:1\nRUN apk add curl\nCMD [\"x\"]\n");
    let fixed = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "{} --data-dir {} image advise fat:1 --apply Dockerfile | git apply -",
            naru_image_tests::harness::naru_binary().display(),
            daemon.data_dir().display()
        ))
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(fixed.status.success(), "{}", text(&fixed));
    let want = format!("FROM fat:1@{digest}\nRUN apk add --no-cache curl\nCMD [\"x\"]\n");
    assert_eq!(fs::read_to_string(dir.path().join("Dockerfile")).unwrap(), want);
    daemon.destroy();
}

/// Two machines: what one has done the other need not do. And the same bytes come out of both.
#[test]
fn another_daemon_takes_the_steps_from_the_registry() {
    let one = Daemon::start();
    let home = tempfile::tempdir().unwrap();
    let credentials = home.path().join("config.json");
    let other = Daemon::start_in(
        tempfile::tempdir().unwrap(),
        &["--docker-config", &credentials.display().to_string()],
    );
    use base64::Engine;
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("naru:{}", one.push_token()));
    let host = one.http().trim_start_matches("http://").to_owned();
    fs::write(&credentials, format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#)).unwrap();
    let dir = context();
    write(dir.path(), "src/file", "content");
    let dockerfile = format!(
        "{BASE}FROM base AS made\nCOPY src /src\nRUN cat /src/file > /made; busybox date +%N > /when\n\
         FROM base\nCOPY --from=made /made /when /\nRUN busybox mkdir -p /d/e\n"
    );
    write(dir.path(), "Dockerfile", &dockerfile);
    let cache = format!("type=registry,ref={host}/cache/app:main");
    let digest = |output: &Output| {
        assert!(output.status.success(), "{}", text(output));
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        stdout.split_whitespace().last().unwrap().to_owned()
    };
    let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=1700000000"];
    let to = format!("{cache},mode=max");
    let first = digest(&build(&other, dir.path(), &[&epoch[..], &["--cache-to", &to]].concat()));
    // The first daemon has done none of it, and `date` would tell.
    let second =
        build(&one, dir.path(), &[&epoch[..], &["--cache-from", &cache, "--progress", "plain"]].concat());
    let shown = text(&second);
    assert_eq!(digest(&second), first, "{shown}");
    assert!(shown.contains("6 of 6 steps cached"), "{shown}");
    // A cache that is not there yet is no reason to fail.
    let none = format!("type=registry,ref={host}/cache/none:main");
    let third = build(&one, dir.path(), &["--cache-from", &none, "--no-cache"]);
    assert!(text(&third).contains("is not used") && third.status.success(), "{}", text(&third));

    // With the epoch and without any cache, steps that do not look at the clock give the same bytes.
    write(
        dir.path(),
        "Dockerfile",
        &dockerfile.replace("; busybox date +%N > /when", "").replace(" /when /", " /"),
    );
    let again = |daemon: &Daemon| digest(&build(daemon, dir.path(), &[&epoch[..], &["--no-cache"]].concat()));
    let reproduced = again(&one);
    assert_eq!(again(&other), reproduced);
    write(dir.path(), "src/file", "content");
    assert_eq!(again(&one), reproduced, "times of the context's files do not count");
    one.destroy();
    other.destroy();
}

/// kill -9 in the middle of builds: the next daemon goes on, and no half layer is ever used.
#[test]
fn a_killed_daemon_goes_on_with_its_builds() {
    let mut daemon = Daemon::start();
    let dir = context();
    let steps: String = (0..4)
        .map(|it| format!("RUN for i in 1 2 3 4 5; do busybox head -c 200000 /bin/sh > /data-{it}-$i; done; echo \"$SEED {it}\" >> /all\n"))
        .collect();
    let dockerfile = format!("{BASE}ARG SEED\nCOPY src /src\n{steps}COPY --chmod=600 src /copied\n");
    write(dir.path(), "Dockerfile", &dockerfile);
    for it in 0..50 {
        write(dir.path(), &format!("src/{it}"), &format!("file {it}"));
    }
    // A seed each: where the kill comes moves through the whole build.
    for seed in 0..3u64 {
        let argument = format!("SEED={seed}");
        let text_of_seed = seed.to_string();
        let of_seed = |it: &&serde_json::Value| it["spec"]["args"]["SEED"].as_str() == Some(&text_of_seed);
        let started = std::thread::scope(|scope| {
            let building =
                scope.spawn(|| build(&daemon, dir.path(), &["-t", "killed:1", "--build-arg", &argument]));
            // Once it is under way, a part of its usual second and a half later.
            daemon.wait_for("a build", "images", |all| {
                all.iter().find(of_seed).filter(|it| it["status"]["phase"] == "Building").map(|_| ())
            });
            std::thread::sleep(std::time::Duration::from_millis(seed * 431));
            let pid = fs::read_to_string(daemon.data_dir().join("naru.lock")).unwrap();
            run("kill", &["-9", pid.trim()]);
            building.join().unwrap()
        });
        daemon.kill();
        daemon.start_again();
        let image = daemon.wait_for("the build after the restart", "images", |all| {
            all.iter()
                .find(of_seed)
                .filter(|it| {
                    !matches!(it["status"]["phase"].as_str(), None | Some("" | "Pending" | "Building"))
                })
                .cloned()
        });
        assert_eq!(image["status"]["phase"], "Ready", "seed {seed}: {image:#}\n{}", text(&started));
        let archive = dir.path().join("../").join(format!("{}-{seed}.oci", std::process::id()));
        let output = format!("type=oci,dest={}", archive.display());
        write(dir.path(), ".dockerignore", "*.oci\n");
        let again = build(&daemon, dir.path(), &["-q", "--build-arg", &argument, "-o", &output]);
        assert!(again.status.success(), "{}", text(&again));
        let image = Image::read(&archive);
        fs::remove_file(&archive).unwrap();
        let all: String = (0..4).map(|it| format!("{seed} {it}\n")).collect();
        assert_eq!(image.tree["all"], format!("file 644 0:0 {all:?}"), "seed {seed}");
        let part = image.tree["data-0-1"].clone();
        assert!(part.contains("200000 bytes"), "{part}");
        for step in 0..4 {
            for it in 1..=5 {
                assert_eq!(image.tree[&format!("data-{step}-{it}")], part, "seed {seed}");
            }
        }
        assert_eq!(image.tree.keys().filter(|it| it.starts_with("copied/")).count(), 50, "seed {seed}");
    }
    daemon.destroy();
}
