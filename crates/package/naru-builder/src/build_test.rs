//! Builds of real Dockerfiles. `RUN` steps are run for real too, over a mounted overlay with `chroot`
//! and Debian's static busybox, so that no cluster is needed here. Runs as root.

use crate::run::{RunFailure, RunStep, Runner};
use crate::*;
use naru_image::{Digest, HostImageConfig, ImageStore, LastLink, PullPolicy};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

struct ChrootRunner {
    store: ImageStore,
    dir: PathBuf,
    runs: AtomicU32,
}

impl Runner for ChrootRunner {
    fn run(&self, step: &RunStep, log: &mut dyn FnMut(&str)) -> Result<(), RunFailure> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let image = self.store.local(&step.image).unwrap().unwrap();
        let at = |it: &str| self.dir.join(format!("{}-{it}", step.id));
        for it in ["upper", "work", "root"] {
            fs::create_dir(at(it)).unwrap();
        }
        let mut lower: Vec<String> = image.lower_dirs.iter().map(|it| it.display().to_string()).collect();
        if image.host.is_some() {
            // overlayfs refuses a lower layer inside another, and every layer is inside `/`: the machine's
            // own root becomes an overlay first (a node hides its secrets in the same step).
            for it in ["mask", "host"] {
                fs::create_dir(at(it)).unwrap();
            }
            let mount = |args: &[&str], to: &Path| {
                assert!(Command::new("mount").args(args).arg(to).status().unwrap().success());
            };
            mount(&["-t", "tmpfs", "mask"], &at("mask"));
            mount(
                &["-t", "overlay", "overlay", "-o", &format!("lowerdir={}:/", at("mask").display())],
                &at("host"),
            );
            *lower.last_mut().unwrap() = at("host").display().to_string();
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off",
            lower.join(":"),
            at("upper").display(),
            at("work").display()
        );
        let mount =
            Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(at("root")).status();
        assert!(mount.unwrap().success());
        let user = if image.config.config.user.is_empty() { "0:0" } else { &image.config.config.user };
        let output = Command::new("chroot")
            .arg(format!("--userspec={user}"))
            .arg(at("root"))
            .args(["/bin/sh", "-c", "cd \"$0\" && exec \"$@\"", &step.working_dir])
            .args(&step.command)
            .env_clear()
            .envs(image.config.config.env.iter().filter_map(|it| it.split_once('=')))
            .envs(step.env.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap();
        assert!(Command::new("umount").arg(at("root")).status().unwrap().success());
        if image.host.is_some() {
            for it in ["host", "mask"] {
                assert!(Command::new("umount").arg(at(it)).status().unwrap().success());
                fs::remove_dir(at(it)).unwrap();
            }
        }
        for line in String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).lines() {
            log(line);
        }
        let outcome = match output.status.code() {
            Some(0) => {
                self.store.commit_blocking(&step.id, &at("upper")).unwrap();
                Ok(())
            }
            code => {
                Err(RunFailure::Failed { exit_code: i64::from(code.unwrap_or(-1)), reason: String::new() })
            }
        };
        for it in ["upper", "work", "root"] {
            fs::remove_dir_all(at(it)).unwrap();
        }
        outcome
    }
}

mod platforms;

struct Fixture {
    dir: tempfile::TempDir,
    store: ImageStore,
    runner: Arc<ChrootRunner>,
    builder: Builder,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(naru_image::Config {
            dir: dir.path().join("images"),
            host: HostImageConfig {
                home: "/root".into(),
                path: "/usr/bin:/bin".into(),
                ..Default::default()
            },
            aliases: vec![("rust:1".into(), "host".into())],
            ..Default::default()
        })
        .unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        let runner = Arc::new(ChrootRunner {
            store: store.clone(),
            dir: dir.path().join("run"),
            runs: AtomicU32::new(0),
        });
        let config =
            Config { may_reach_this_machine: true, ..Config::new(dir.path().join("build"), "default") };
        let builder =
            Builder::with_runner(store.clone(), Arc::clone(&runner) as Arc<dyn Runner>, config).unwrap();
        let it = Self { dir, store, runner, builder };
        it.write("busybox", fs::read("/bin/busybox").expect("busybox-static is installed"));
        fs::set_permissions(it.context().join("busybox"), fs::Permissions::from_mode(0o755)).unwrap();
        it
    }

    fn context(&self) -> PathBuf {
        self.dir.path().join("context")
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.context().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn request(&self, dockerfile: &str) -> BuildRequest {
        self.write("Dockerfile", dockerfile);
        BuildRequest {
            context: self.context(),
            dockerfile: "Dockerfile".into(),
            name: "test/app".into(),
            ..Default::default()
        }
    }

    async fn build(&self, dockerfile: &str) -> Result<(BuiltImage, String), BuildError> {
        self.build_request(self.request(dockerfile)).await
    }

    async fn build_request(&self, request: BuildRequest) -> Result<(BuiltImage, String), BuildError> {
        let (lines, heard) = std::sync::mpsc::channel();
        let built = self.builder.build(request, move |it| lines.send(it.to_string()).unwrap()).await?;
        Ok((built, heard.iter().collect::<Vec<_>>().join("\n")))
    }

    /// The content of a file of an image, or `None`.
    async fn file(&self, image: &BuiltImage, path: &str) -> Option<String> {
        let view = self.store.ensure(&image.reference, PullPolicy::Never).await.unwrap().view();
        view.read(Path::new(path), 1 << 20).unwrap().map(|it| String::from_utf8(it).unwrap())
    }

    async fn meta(&self, image: &BuiltImage, path: &str) -> fs::Metadata {
        let view = self.store.ensure(&image.reference, PullPolicy::Never).await.unwrap().view();
        view.resolve(Path::new(path), LastLink::Keep).unwrap().expect(path).1.meta
    }
}

/// The runner itself needs a shell before the first RUN.
fn with_shell(rest: &str) -> String {
    format!(
        "FROM scratch AS base\nCOPY --chmod=755 busybox /bin/sh\nCOPY busybox /bin/busybox\nRUN /bin/busybox --install -s /bin; true\n{rest}"
    )
}

#[tokio::test]
async fn a_multi_stage_build_with_real_steps() {
    let it = Fixture::new();
    it.write("src/main.txt", "hello");
    it.write("src/.dockerignore-me", "x");
    it.write("notes.md", "n");
    it.write(".dockerignore", "*.md\n");
    let dockerfile = with_shell(
        "FROM base AS unused\nRUN exit 1\n\
         FROM base AS build\nARG GREETING=hi\nENV NAME=world\nWORKDIR /work\nCOPY . .\n\
         RUN test ! -e notes.md && echo \"$GREETING $NAME $(cat src/main.txt)\" \\\n  # a comment\n  > out && echo told\n\
         FROM scratch\nCOPY --from=build --chown=12:34 /work/out /app/\nUSER 12\nEXPOSE 80\nCMD [\"/app/out\"]\n\
         LABEL a=b\nENTRYPOINT [\"/x\"]\nHEALTHCHECK --interval=5s CMD [\"/x\", \"-h\"]\nSTOPSIGNAL SIGINT\n",
    );
    let mut request = it.request(&dockerfile);
    request.args.insert("GREETING".into(), "hello".into());
    let (image, log) = it.build_request(request.clone()).await.map_err(|it| it.report()).unwrap();
    assert_eq!(it.file(&image, "app/out").await.unwrap(), "hello world hello\n");
    assert_eq!((it.meta(&image, "app/out").await.uid(), it.meta(&image, "app/out").await.gid()), (12, 34));
    assert!(log.contains(": told"), "{log}");
    assert!(!log.contains("unused"), "{log}");
    assert_eq!(image.layers, 1);
    let config = it.store.ensure(&image.reference, PullPolicy::Never).await.unwrap().config;
    assert_eq!(config.config.user, "12");
    assert_eq!(config.config.cmd, ["/app/out"], "CMD of the same file stays");
    assert_eq!(config.config.entrypoint, ["/x"]);
    assert_eq!(config.config.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(config.config.healthcheck.unwrap()["Interval"], 5_000_000_000i64);
    assert_eq!(config.rootfs.diff_ids.len(), config.history.iter().filter(|it| !it.empty_layer).count());

    // Again: nothing runs and the image is the same.
    let runs = it.runner.runs.load(Ordering::Relaxed);
    let before = std::time::Instant::now();
    let (again, _) = it.build_request(request.clone()).await.unwrap();
    eprintln!("no-change rebuild: {:?}", before.elapsed());
    assert_eq!(again.digest, image.digest);
    assert_eq!((again.cached_steps, again.total_steps), (7, 7));
    assert_eq!(it.runner.runs.load(Ordering::Relaxed), runs);

    // Another time, same content: still nothing. Other content: only what depends on it.
    it.write("src/main.txt", "hello");
    it.build_request(request.clone()).await.unwrap();
    assert_eq!(it.runner.runs.load(Ordering::Relaxed), runs);
    it.write("src/main.txt", "changed");
    let (changed, _) = it.build_request(request.clone()).await.unwrap();
    assert_eq!(it.runner.runs.load(Ordering::Relaxed), runs + 1);
    assert_eq!(it.file(&changed, "app/out").await.unwrap(), "hello world changed\n");
    // Ignored content does not count; another argument does.
    it.write("notes.md", "changed");
    it.build_request(request.clone()).await.unwrap();
    assert_eq!(it.runner.runs.load(Ordering::Relaxed), runs + 1);
    request.args.insert("GREETING".into(), "bye".into());
    it.build_request(request).await.unwrap();
    assert_eq!(it.runner.runs.load(Ordering::Relaxed), runs + 2);

    // Real tools read the image.
    let out = it.dir.path().join("out");
    let copied = Command::new("skopeo")
        .args(["copy", &format!("oci:{}:naru.local/test/app:latest", it.store.dir().display())])
        .arg(format!("dir:{}", out.display()))
        .output()
        .unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
}

#[tokio::test]
async fn a_failed_step_says_where_and_what() {
    let it = Fixture::new();
    let error = it.build(&with_shell("RUN echo before \\\n && no-such-program\n")).await.unwrap_err();
    let report = error.report();
    assert!(report.contains("--> Dockerfile:5:1"), "{report}");
    assert!(
        report.contains("exit code 127") && report.contains("| before") && report.contains("no-such-program"),
        "{report}"
    );
    // What was done before is not done again.
    let (image, _) = it.build(&with_shell("RUN echo before\n")).await.unwrap();
    assert_eq!(image.cached_steps, 3);
}

#[tokio::test]
async fn copy_follows_dockers_rules() {
    let it = Fixture::new();
    it.write("a/one", "1");
    it.write("a/sub/two", "2");
    it.write("three", "3");
    it.write("x1.txt", "x1");
    it.write("x2.txt", "x2");
    it.write("script", "#!");
    fs::set_permissions(it.context().join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("three", it.context().join("link")).unwrap();
    let root = it.context().join("root");
    fs::create_dir_all(root.join("usr/lib")).unwrap();
    symlink("usr/lib", root.join("lib")).unwrap();
    it.write("etc/passwd", "app:x:7:8::/:\n");
    let dockerfile = "FROM scratch\nCOPY root /\nCOPY etc/passwd /etc/passwd\nCOPY a /dir\nCOPY three /dir\nCOPY three /renamed\n\
        COPY x*.txt script /many/\nCOPY link /from-link\nCOPY three /lib/three\nWORKDIR /w/x\nCOPY three .\nCOPY --chown=app three ./owned\n\
        ENV P=expanded\nCOPY <<one <<\"two\" /inline/\n$P\none\n$P\ntwo\nADD a.tar /unpacked/\nCOPY a.tar /kept\n";
    let tar = Command::new("tar")
        .arg("-cf")
        .arg(it.context().join("a.tar"))
        .arg("-C")
        .arg(it.context())
        .arg("a")
        .status();
    assert!(tar.unwrap().success());
    let (image, _) = it.build(dockerfile).await.map_err(|it| it.report()).unwrap();
    for (path, want) in [
        ("dir/one", "1"),
        ("dir/sub/two", "2"),
        ("dir/three", "3"),
        ("renamed", "3"),
        ("many/x1.txt", "x1"),
        ("many/x2.txt", "x2"),
        ("from-link", "3"),
        ("usr/lib/three", "3"),
        ("lib/three", "3"),
        ("w/x/three", "3"),
        ("inline/one", "expanded\n"),
        ("inline/two", "$P\n"),
        ("unpacked/a/one", "1"),
    ] {
        assert_eq!(it.file(&image, path).await.as_deref(), Some(want), "{path}");
    }
    assert!(it.meta(&image, "lib").await.is_symlink(), "the image's own link is still there");
    assert!(it.meta(&image, "kept").await.len() > 1000);
    assert_eq!(it.meta(&image, "many/script").await.permissions().mode() & 0o777, 0o755);
    let owned = it.meta(&image, "w/x/owned").await;
    assert_eq!((owned.uid(), owned.gid()), (7, 8));

    for (dockerfile, want) in [
        ("FROM scratch\nCOPY nothing /x\n", "`nothing` is not there"),
        ("FROM scratch\nCOPY *.none /x/\n", "`*.none` is not there"),
        ("FROM scratch\nARG P=../x\nCOPY $P /x\n", "outside the build context"),
        ("FROM scratch\nCOPY --chown=nobody three /x\n", "no user `nobody`"),
        ("FROM scratch\nCOPY three /x\nCOPY a /x\n", "both a file and a directory"),
        ("FROM --platform=windows/amd64 scratch\n", "images are of linux"),
        ("FROM naru.local/missing\n", "not on this machine"),
        ("FROM scratch\nCOPY --from=naru.local/other /x /y\n", "not on this machine"),
    ] {
        let report = it.build(dockerfile).await.unwrap_err().report();
        assert!(report.contains(want) && report.contains("--> Dockerfile:"), "{dockerfile}: {report}");
    }
}

#[tokio::test]
async fn a_context_cannot_be_left() {
    let it = Fixture::new();
    fs::write(it.dir.path().join("secret"), "s").unwrap();
    symlink("../secret", it.context().join("up")).unwrap();
    symlink("/etc", it.context().join("etc-link")).unwrap();
    for dockerfile in [
        "FROM scratch\nCOPY up /x\n",
        "FROM scratch\nCOPY etc-link/passwd /x\n",
        "FROM scratch\nCOPY etc-link /x\n",
    ] {
        let report = it.build(dockerfile).await.unwrap_err().report();
        assert!(report.contains("is not there"), "{report}");
    }
    // A link that is copied with its directory, then written through.
    it.write("one/keep", "");
    symlink("/etc", it.context().join("one/d")).unwrap();
    it.write("two/d/naru-marker", "x");
    let result = it.build("FROM scratch\nCOPY one two /t/\n").await;
    assert!(result.is_err() && !Path::new("/etc/naru-marker").exists());
    // In two layers the second lands where the link leads, inside the image.
    let (image, _) =
        it.build("FROM scratch\nWORKDIR /etc\nCOPY one /t/\nCOPY two/d/naru-marker /t/d/\n").await.unwrap();
    assert!(!Path::new("/etc/naru-marker").exists());
    assert_eq!(it.file(&image, "etc/naru-marker").await.as_deref(), Some("x"));
}

#[tokio::test]
async fn builds_are_reproducible_when_asked() {
    let digests: Vec<Digest> = {
        let mut digests = Vec::new();
        for _ in 0..2 {
            let it = Fixture::new();
            it.write("b/x", "1");
            let mut request = it.request(&with_shell(
                "WORKDIR /d/e\nCOPY b .\nRUN echo made > file && mkdir sub && touch sub/a\n",
            ));
            request.source_date_epoch = Some(1_600_000_000);
            digests.push(it.build_request(request).await.unwrap().0.digest);
        }
        digests
    };
    assert_eq!(digests[0], digests[1]);
}

#[tokio::test]
async fn an_image_over_the_host_stays_here_and_its_files_can_be_taken() {
    let it = Fixture::new();
    let dockerfile = "FROM rust:1 AS build\nCOPY busybox /naru-made/busybox\nRUN echo $PATH > /naru-made/path\nFROM scratch\nCOPY --from=build /naru-made /\n";
    let (image, _) = it.build(dockerfile).await.map_err(|it| it.report()).unwrap();
    assert!(it.file(&image, "path").await.unwrap().starts_with("/usr/bin"));
    let error = it.build("FROM rust:1 AS b\nFROM scratch\nCOPY --from=b /etc/shadow /x\n").await.unwrap_err();
    assert!(error.report().contains("is not there"));
    let (over, _) = it.build("FROM rust:1\nCOPY busybox /opt/made\n").await.unwrap();
    assert!(over.advice.iter().any(|it| it.message.contains("this machine's own root")));
    let local = it.store.ensure(&over.reference, PullPolicy::Never).await.unwrap();
    assert_eq!(local.lower_dirs.last().unwrap(), Path::new("/"));
    assert!(it.store.manifest(&over.digest).unwrap().is_over_host());
}

#[tokio::test]
async fn advice_is_given_for_what_is_certain() {
    let it = Fixture::new();
    let dockerfile = with_shell(
        "RUN mkdir -p /var/lib/apt/lists && dd if=/dev/zero of=/var/lib/apt/lists/x bs=1M count=2 || head -c 2097152 /bin/busybox > /var/lib/apt/lists/x\nENV DB_PASSWORD=x\n",
    );
    let (image, _) = it.build(&dockerfile).await.map_err(|it| it.report()).unwrap();
    let lines: Vec<(u32, &str)> = image.advice.iter().map(|it| (it.line, it.message.as_str())).collect();
    assert!(lines.iter().any(|it| it.0 == 0 && it.1.contains("as root")), "{lines:?}");
    assert!(lines.iter().any(|it| it.0 == 6 && it.1.contains("DB_PASSWORD")), "{lines:?}");
    assert!(lines.iter().any(|it| it.0 == 5 && it.1.contains("apt/lists")), "{lines:?}");
    let (image, _) = it.build("FROM scratch\nCOPY busybox /x\nUSER 65534\n").await.unwrap();
    assert_eq!(image.advice, []);
}

#[tokio::test]
async fn a_full_disk_is_said_and_leaves_nothing() {
    let small = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(small.path()).status();
    assert!(mounted.unwrap().success());
    let it = Fixture::new();
    let store =
        ImageStore::open(naru_image::Config { dir: small.path().join("images"), ..Default::default() })
            .unwrap();
    let config = Config::new(small.path().join("build"), "default");
    let builder =
        Builder::with_runner(store.clone(), Arc::clone(&it.runner) as Arc<dyn Runner>, config).unwrap();
    it.write("big", vec![1; 8 << 20]);
    it.write("small", "s");
    let error = builder.build(it.request("FROM scratch\nCOPY big /x\n"), |_| {}).await.unwrap_err();
    assert!(error.is_disk_full() && error.report().contains("hint: the disk is full"), "{}", error.report());
    assert_eq!(
        fs::read_dir(small.path().join("images/tmp")).unwrap().count(),
        0,
        "no temporary file is left"
    );
    let built = builder.build(it.request("FROM scratch\nCOPY small /x\n"), |_| {}).await;
    assert!(built.is_ok(), "there is room again");
    drop((builder, store));
    assert!(Command::new("umount").arg(small.path()).status().unwrap().success());
}

fn findings(text: &str) -> Vec<String> {
    parse(text).findings.iter().map(|it| it.render("Dockerfile")).collect()
}

#[test]
fn what_is_not_supported_is_refused_at_its_place() {
    for (text, want) in [
        ("FROM a\nFRUM b\n", &["`FRUM` is not an instruction", "Dockerfile:2:1", "did you mean `FROM`?"][..]),
        ("RUN x\n", &["before the first `FROM`", "Dockerfile:1:1", "starts with `FROM <image>`"]),
        ("", &["has no `FROM`", "Dockerfile:1:1"]),
        ("FROM a\nCOPY ../x /y\n", &["`../x` lies outside", "Dockerfile:2:6"]),
        ("FROM a\nCOPY a/../../x /y\n", &["outside the build context"]),
        ("FROM a\nRUN --mount=type=secret cat\n", &["a secret needs an `id`", "Dockerfile:2:5"]),
        ("FROM a\nRUN --mount=type=cash,target=/x cat\n", &["`type=cash` of `--mount`", "Dockerfile:2:5"]),
        ("FROM a\nRUN --mount=type=cache,target=/x,mod=7 cat\n", &["no key `mod`", "did you mean `mode`?"]),
        ("FROM a\nRUN --mount=type=tmpfs,target=/x,id=7 cat\n", &["type `tmpfs` has no key `id`"]),
        ("FROM a\nRUN --mount=type=cache cat\n", &["needs a `target`"]),
        ("FROM a\nRUN --network=host x\n", &["`--network=host` is refused", "Dockerfile:2:5"]),
        ("FROM a\nRUN --security=insecure x\n", &["cannot give itself privileges", "Dockerfile:2:5"]),
        ("FROM a\nRUN a \\\n  && b\nCOPY --form=b a b\n", &["no flag `--form`", "Dockerfile:4:6", "`from`?"]),
        ("FROM a\nADD --checksum=md5:1 http://x/y /z\n", &["is not a digest", "Dockerfile:2:5"]),
        ("FROM a\nONBUILD ONBUILD RUN x\n", &["`ONBUILD` cannot be followed by `ONBUILD`", "Dockerfile:2:9"]),
        ("FROM a\nONBUILD COPY --no a b\n", &["`COPY` has no flag `--no`", "Dockerfile:2:14"]),
        ("FROM a AS x\nCOPY --from=x /a /b\n", &["is this stage itself"]),
        ("FROM a\nCOPY --from=$X /a /b\n", &["`--from` does not know variables"]),
        ("FROM a\nCOPY --from=3 /x /y\n", &["no stage number 3"]),
        ("FROM a\nCOPY a b /c\n", &["several sources", "write `/c/`", "Dockerfile:2:10"]),
        ("FROM a\nCOPY a\n", &["at least one source", "Dockerfile:2:1"]),
        ("FROM a\nENV X\n", &["`ENV X` has no value"]),
        ("FROM a\nENV A=1 B\n", &["`B` is not of the form", "Dockerfile:2:9"]),
        ("FROM a\nRUN <<EOF\nx\n", &["the heredoc `EOF` is never closed", "Dockerfile:2:5"]),
        ("FROM a\nHEALTHCHECK --intervall=3s CMD x\n", &["`--intervall`", "did you mean `interval`?"]),
        ("FROM a\nHEALTHCHECK CMD\n", &["followed by `NONE` or by `CMD`"]),
        ("FROM a\nCOPY --chmod=u+y a b\n", &["neither an octal nor a symbolic mode"]),
        ("FROM a b\n", &["takes an image"]),
        ("FROM a AS 1x\n", &["`1x` cannot name a stage"]),
        ("FROM a\nSHELL /bin/sh\n", &["`SHELL` needs a JSON list"]),
        ("FROM a\nWORKDIR\n", &["`WORKDIR` needs an argument"]),
        ("# syntax=example.com/other:1\nFROM a\n", &["another frontend", "Dockerfile:1:1"]),
        (
            "# check=error=true\nFROM a\nMAINTAINER x\n",
            &["`MAINTAINER` is deprecated (MaintainerDeprecated)"],
        ),
    ] {
        let found = findings(text);
        assert!(parse(text).has_errors(), "{text}");
        for part in want {
            assert!(found.iter().any(|it| it.contains(part)), "{text:?} -> {found:?}, want {part}");
        }
    }
    // It may be an image or a context that is called so: said, and tried.
    let near = findings("FROM a AS build\nFROM b\nCOPY --from=bild /x /y\n");
    assert!(near[0].starts_with("warning") && near[0].contains("did you mean `build`?"), "{near:?}");
    assert_eq!(findings("\u{feff}FROM a\r\nRUN x\r\n"), Vec::<String>::new());
    let huge = format!("FROM a\n{}", "RUN x\n".repeat(10_000));
    assert!(findings(&huge)[0].contains("more than"));
}

#[test]
fn advice_of_buildkits_linter_is_given_and_can_be_silenced() {
    for (text, rule) in [
        ("FROM a\nMAINTAINER x\n", "MaintainerDeprecated"),
        ("FROM a AS B\n", "StageNameCasing"),
        ("FROM a as b\n", "FromAsCasing"),
        ("FROM a\nrun x\nRUN y\n", "ConsistentInstructionCasing"),
        ("FROM a\nRUN x \\\n\n y\n", "NoEmptyContinuation"),
        ("FROM a\nENV A b\n", "LegacyKeyValueFormat"),
        ("FROM a\nCMD x y\n", "JSONArgsRecommended"),
        ("FROM a\nCMD [\"x\"]\nCMD [\"y\"]\n", "MultipleInstructionsDisallowed"),
        ("FROM a\nENV DB_PASSWORD=x\n", "SecretsUsedInArgOrEnv"),
        ("FROM a:$V\n", "UndefinedArgInFrom"),
        ("FROM a\nWORKDIR x\n", "WorkdirRelativePath"),
        ("FROM --platform=linux/amd64 a\n", "FromPlatformFlagConstDisallowed"),
        ("FROM --platform=$TARGETPLATFORM a\n", "RedundantTargetPlatform"),
        ("FROM a AS scratch\n", "ReservedStageName"),
        ("FROM a\nEXPOSE 80/TCP\n", "ExposeProtoCasing"),
    ] {
        let found = findings(text);
        assert!(
            found.len() == 1 && found[0].contains(rule) && found[0].starts_with("warning"),
            "{text}: {found:?}"
        );
        for skip in [rule, "all"] {
            assert_eq!(findings(&format!("# check=skip={skip}\n{text}")), Vec::<String>::new(), "{text}");
        }
    }
    assert_eq!(
        findings(
            "ARG V=1\nFROM --platform=$BUILDPLATFORM a:$V AS b\nENV PUBLIC_KEY=x\nEXPOSE 80/tcp\nWORKDIR /x\nWORKDIR y\nCMD [\"x\"]\n"
        ),
        Vec::<String>::new()
    );
    assert!(findings("# check=skip=Wrong\nFROM a\n")[0].contains("no rule `Wrong`"));
}

#[test]
fn shell_commands_are_joined_as_docker_joins_them() {
    use form::{Action, Command, Run};
    let command = |text: &str| match &parse(text).stages[0].instructions[0].action {
        Action::Run(Run { command: Command::Shell(it), .. }) => it.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(command("FROM a\nRUN a \\\n  # no\n\n  b\n"), "a   b");
    assert_eq!(command("# escape=`\nFROM a\nRUN a `\n b\n"), "a  b");
    assert_eq!(command("FROM a\nRUN <<EOF\none\ntwo\nEOF\n"), "one\ntwo\n");
}

#[tokio::test]
async fn flags_of_copy_do_what_they_say() {
    let it = Fixture::new();
    for path in ["src/a/one.txt", "src/a/one.log", "src/b/two.txt", "src/b/deep/three.txt", "top.txt"] {
        it.write(path, path);
    }
    fs::set_permissions(it.context().join("src/a"), fs::Permissions::from_mode(0o711)).unwrap();
    let dockerfile = "FROM scratch\nCOPY --exclude=**/*.log --exclude=b/deep src /e/\n\
        COPY --exclude=t* *.txt src/a/one.txt /f/\n\
        COPY --parents src/a/one.txt src/b/deep /p/\nCOPY --parents src/./b/two.txt /pivot\nCOPY --parents **/*.txt /all/\n\
        COPY --chmod=u=rwX,go=rX src/a /m\nCOPY --link --chown=5 top.txt /l/x/\nCOPY --chmod=$MODE top.txt /mode\n"
        .replace("FROM scratch\n", "FROM scratch\nENV MODE=4750\n");
    let (image, _) = it.build(&dockerfile).await.map_err(|it| it.report()).unwrap();
    for (path, is_there) in [
        ("e/a/one.txt", true),
        ("e/a/one.log", false),
        ("e/b/two.txt", true),
        ("e/b/deep", false),
        ("f/one.txt", true),
        ("f/top.txt", false),
        ("p/src/a/one.txt", true),
        ("p/src/a/one.log", false),
        ("p/src/b/deep/three.txt", true),
        ("pivot/b/two.txt", true),
        ("pivot/src", false),
        ("all/src/b/deep/three.txt", true),
        ("all/top.txt", true),
        ("l/x/top.txt", true),
    ] {
        let view = it.store.ensure(&image.reference, PullPolicy::Never).await.unwrap().view();
        assert_eq!(view.resolve(Path::new(path), LastLink::Keep).unwrap().is_some(), is_there, "{path}");
    }
    let mode = async |path: &str| it.meta(&image, path).await.permissions().mode() & 0o7777;
    assert_eq!(mode("m/one.txt").await, 0o644);
    assert_eq!(mode("mode").await, 0o4750);
    assert_eq!(mode("p/src/a").await, 0o711, "kept directories are as they were");
    assert_eq!(it.meta(&image, "l/x/top.txt").await.uid(), 5);
}

#[tokio::test]
async fn triggers_of_a_base_image_run_in_the_build_on_it() {
    let it = Fixture::new();
    it.write("app.txt", "the app");
    let mut request = it.request(&with_shell(
        "ONBUILD ARG WHO=nobody\nONBUILD COPY app.txt /app/\nONBUILD RUN echo \"for $WHO\" > /made\nONBUILD COPY <<x /doc\ntext\nx\nRUN echo here > /own\n",
    ));
    request.name = "test/base".into();
    let (base, _) = it.build_request(request).await.map_err(|it| it.report()).unwrap();
    assert_eq!(it.file(&base, "made").await, None, "they are for others");
    let mut request = it.request("FROM naru.local/test/base\nRUN cat /made >> /own\n");
    request.args.insert("WHO".into(), "you".into());
    let (image, log) = it.build_request(request).await.map_err(|it| it.report()).unwrap();
    assert_eq!(it.file(&image, "own").await.as_deref(), Some("here\nfor you\n"));
    assert_eq!(it.file(&image, "app/app.txt").await.as_deref(), Some("the app"));
    assert_eq!(it.file(&image, "doc").await.as_deref(), Some("text\n"));
    assert!(log.contains("ONBUILD RUN"), "{log}");
    let config = it.store.ensure(&image.reference, PullPolicy::Never).await.unwrap().config;
    assert!(config.config.on_build.is_empty(), "they are done");
}

#[tokio::test]
async fn stages_that_need_nothing_of_each_other_are_built_side_by_side() {
    let it = Fixture::new();
    // Each waits for a file that the other makes, in a directory that both see.
    let meeting = it.dir.path().join("meeting");
    fs::create_dir(&meeting).unwrap();
    struct Meeting(Arc<ChrootRunner>, std::sync::Barrier);
    impl Runner for Meeting {
        fn run(&self, step: &RunStep, log: &mut dyn FnMut(&str)) -> Result<(), RunFailure> {
            if step.command.iter().any(|it| it.contains("meet")) {
                self.1.wait();
            }
            self.0.run(step, log)
        }
    }
    let runner = Arc::new(Meeting(Arc::clone(&it.runner), std::sync::Barrier::new(2)));
    let config = Config::new(it.dir.path().join("build-2"), "default");
    let builder = Builder::with_runner(it.store.clone(), runner, config).unwrap();
    let request = it.request(&with_shell(
        "FROM base AS a\nRUN echo meet > /a\nFROM base AS b\nRUN echo meet > /b\nFROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n",
    ));
    let build = builder.build(request, |_| {});
    let image =
        tokio::time::timeout(std::time::Duration::from_secs(60), build).await.expect("they meet").unwrap();
    assert_eq!(it.file(&image, "a").await.as_deref(), Some("meet\n"));
    assert_eq!((image.cached_steps, image.total_steps), (0, 7));
    // A failure in one ends the build, and says which.
    let error = it
        .build(&with_shell("FROM base AS a\nRUN exit 3\nFROM base AS b\nRUN echo fine\nFROM scratch\nCOPY --from=a / /\nCOPY --from=b / /\n"))
        .await
        .unwrap_err();
    assert!(
        error.report().contains("exit code 3") && error.report().contains("Dockerfile:6:1"),
        "{}",
        error.report()
    );
}

/// Answers with what is at a path, with an entity tag; counts what it sent in full.
async fn serve(files: Vec<(&'static str, Vec<u8>)>) -> (String, Arc<AtomicU32>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let sent = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&sent);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            let mut buffer = [0; 1024];
            while !head.windows(4).any(|it| it == b"\r\n\r\n") {
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => head.extend_from_slice(&buffer[..n]),
                }
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let found = files.iter().find(|it| it.0 == path);
            let mut answer = match found {
                Some((_, to)) if path.starts_with("/moved") => format!(
                    "HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n",
                    String::from_utf8_lossy(to)
                )
                .into_bytes(),
                Some(_) if head.contains("if-none-match: \"1\"") => b"HTTP/1.1 304 Not Modified\r\n".to_vec(),
                Some((_, content)) => {
                    counter.fetch_add(1, Ordering::Relaxed);
                    let length = content.len();
                    format!("HTTP/1.1 200 OK\r\netag: \"1\"\r\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\ncontent-length: {length}\r\n").into_bytes()
                }
                None => b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n".to_vec(),
            };
            answer.extend_from_slice(b"connection: close\r\n\r\n");
            if answer.starts_with(b"HTTP/1.1 200") {
                answer.extend_from_slice(&found.unwrap().1);
            }
            let _ = stream.write_all(&answer).await;
        }
    });
    (address, sent)
}

#[tokio::test]
async fn add_fetches_once_and_checks_what_it_got() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let it = Fixture::new();
    it.write("files/inner.txt", "inner");
    let tar = it.dir.path().join("x.tar.xz");
    let packed =
        Command::new("tar").arg("-cJf").arg(&tar).arg("-C").arg(it.context().join("files")).arg(".").status();
    assert!(packed.unwrap().success());
    let files = vec![
        ("/tool", b"a tool".to_vec()),
        ("/x.tar.xz", fs::read(&tar).unwrap()),
        ("/moved", b"/tool".to_vec()),
        ("/moved-away", b"file:///etc/passwd".to_vec()),
    ];
    let (url, sent) = serve(files).await;
    let digest = Digest::of("a tool");
    let dockerfile = format!(
        "FROM scratch\nADD {url}/tool /bin/\nADD --chmod=755 --checksum={digest} {url}/tool /named\nADD {url}/x.tar.xz /kept/\n\
         ADD --unpack=true {url}/x.tar.xz /unpacked/\nADD {url}/moved /from-redirect\n"
    );
    let (image, _) = it.build(&dockerfile).await.map_err(|it| it.report()).unwrap();
    for (path, want) in [
        ("bin/tool", "a tool"),
        ("named", "a tool"),
        ("unpacked/inner.txt", "inner"),
        ("from-redirect", "a tool"),
    ] {
        assert_eq!(it.file(&image, path).await.as_deref(), Some(want), "{path}");
    }
    let meta = it.meta(&image, "bin/tool").await;
    assert_eq!((meta.permissions().mode() & 0o777, meta.mtime()), (0o600, 784_111_777));
    assert_eq!(it.meta(&image, "named").await.permissions().mode() & 0o777, 0o755);
    assert!(it.meta(&image, "kept/x.tar.xz").await.len() > 50);
    let before = sent.load(Ordering::Relaxed);
    let (again, _) = it.build(&dockerfile).await.unwrap();
    assert_eq!(again.digest, image.digest);
    assert_eq!(sent.load(Ordering::Relaxed), before, "nothing is sent again");
    let wrong = Digest::of("another tool");
    for (line, want) in [
        (format!("ADD --checksum={wrong} {url}/tool /x"), "has the digest sha256:"),
        (format!("ADD {url}/none /x"), "answers 404"),
        (format!("ADD {url}/ /x/"), "answers 404"),
        (format!("ADD {url}/moved-away /x"), "not an address that can be fetched"),
    ] {
        let report = it.build(&format!("FROM scratch\n{line}\n")).await.unwrap_err().report();
        assert!(report.contains(want) && report.contains("Dockerfile:2:1"), "{line}: {report}");
    }
}

#[test]
fn what_was_given_and_not_used_is_said() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let it = Fixture::new();
        let mut request = it.request("ARG A\nFROM scratch\nARG B=1\nENV X=$B\n");
        for name in ["A", "B", "TYPO", "HTTP_PROXY"] {
            request.args.insert(name.into(), "v".into());
        }
        let (_, log) = it.build_request(request).await.unwrap();
        let said: Vec<&str> = log.lines().filter(|it| it.contains("is not used")).collect();
        assert_eq!(said, ["warning: the build argument `TYPO` is not used by any `ARG`"]);
    });
}

#[tokio::test]
async fn add_fetches_a_commit_of_a_repository() {
    let it = Fixture::new();
    let repository = it.dir.path().join("git/shop.git");
    fs::create_dir_all(repository.join("sub")).unwrap();
    fs::write(repository.join("sub/file"), "one").unwrap();
    let git = |args: &[&str]| {
        let identity =
            ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"];
        let output =
            Command::new("git").arg("-C").arg(&repository).args(identity).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-qm", "one"]);
    git(&["tag", "v1"]);
    fs::write(repository.join("sub/file"), "two").unwrap();
    git(&["commit", "-qam", "two"]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // The service itself: `git daemon` would leave it behind as a child.
    let programs = Command::new("git").arg("--exec-path").output().unwrap().stdout;
    let mut server = Command::new(Path::new(String::from_utf8(programs).unwrap().trim()).join("git-daemon"))
        .args(["--export-all", "--listen=127.0.0.1", &format!("--port={free}")])
        .arg(format!("--base-path={}", it.dir.path().join("git").display()))
        .spawn()
        .unwrap();
    while std::net::TcpStream::connect(("127.0.0.1", free)).is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let url = format!("git://127.0.0.1:{free}/shop.git");
    let built = it
        .build(&format!(
            "FROM scratch\nADD {url} /new\nADD {url}#v1:sub /old\nADD --keep-git-dir {url} /kept/\n"
        ))
        .await;
    let missing = it.build(&format!("FROM scratch\nADD {url}#no-such-branch /x\n")).await;
    server.kill().unwrap();
    server.wait().unwrap();
    let (image, _) = built.map_err(|it| it.report()).unwrap();
    assert_eq!(it.file(&image, "new/sub/file").await.as_deref(), Some("two"));
    assert_eq!(it.file(&image, "old/file").await.as_deref(), Some("one"));
    assert!(
        it.file(&image, "new/.git/HEAD").await.is_none() && it.file(&image, "kept/.git/HEAD").await.is_some()
    );
    let report = missing.unwrap_err().report();
    assert!(report.contains("git cannot fetch") && report.contains("no-such-branch"), "{report}");
}
