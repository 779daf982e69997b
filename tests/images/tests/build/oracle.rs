//! The same Dockerfiles through `naru build` and through buildah, a builder that shares no code with us: the
//! same tree comes out, and the same configuration. Where buildah is known to differ from BuildKit, which
//! defines the language, the case says what we do instead.

use crate::image::Image;
use crate::{build, context, run, write};
use naru_image_tests::harness::{Daemon, text};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

struct Case {
    name: &'static str,
    dockerfile: &'static str,
    args: &'static [&'static str],
    /// Paths that may differ, and why.
    except: &'static [(&'static str, &'static str)],
}

const fn case(name: &'static str, dockerfile: &'static str) -> Case {
    Case { name, dockerfile, args: &[], except: &[] }
}

/// In the place of a path: the configuration.
const CONFIG: &str = "(configuration)";
/// What a container runtime makes before the step begins. Buildah leaves it in the image, BuildKit and we
/// take it out again.
const STUBS: &[&str] = &["dev", "etc/hostname", "etc/hosts", "etc/resolv.conf", "proc", "run", "sys"];

const CASES: &[Case] = &[
    case("copy of a file", "FROM scratch\nCOPY one /one\n"),
    case("copy to a new name", "FROM scratch\nCOPY one /a/b/two\n"),
    case("copy into a directory", "FROM scratch\nCOPY one two /d/\n"),
    case("copy of a directory's content", "FROM scratch\nCOPY tree /t\n"),
    case("copy of a directory's content into one", "FROM scratch\nCOPY tree /t/\nCOPY tree /t/\n"),
    case("copy of everything", "FROM scratch\nCOPY . /all\n"),
    case("wildcards", "FROM scratch\nCOPY tre*/*.txt /w/\nCOPY tw? /q\n"),
    case("a class of characters", "FROM scratch\nCOPY [o]ne /c\nCOPY t[^x]o /d\n"),
    case("JSON form with blanks in names", "FROM scratch\nCOPY [\"with space\", \"/x y/\"]\n"),
    case("modes", "FROM scratch\nCOPY --chmod=640 one /one\nCOPY --chmod=0755 tree /t\n"),
    case("owners by number", "FROM scratch\nCOPY --chown=12:34 tree /t\nCOPY --chown=7 one /one\n"),
    case(
        "owners by name",
        "FROM scratch\nCOPY etc /etc\nCOPY --chown=app:staff one /one\nCOPY --chown=app two /two\n",
    ),
    case("a link's target", "FROM scratch\nCOPY link /copied\n"),
    case("links inside a directory", "FROM scratch\nCOPY links /l\n"),
    case("through a link of the image", "FROM scratch\nCOPY rooted /\nCOPY one /lib/one\n"),
    case("later files win", "FROM scratch\nCOPY one /x\nCOPY two /x\n"),
    case("add as copy", "FROM scratch\nADD one tree /d/\n"),
    case("add of tar", "FROM scratch\nADD a.tar /u/\nCOPY a.tar /kept\n"),
    case("add of tar.gz", "FROM scratch\nADD a.tar.gz /u\n"),
    case("add of tar.bz2", "FROM scratch\nADD a.tar.bz2 /u\n"),
    case("add of tar.xz", "FROM scratch\nADD a.tar.xz /u/\n"),
    case("add of what is called an archive", "FROM scratch\nADD fake.tar.gz /u/\n"),
    case(
        "stages",
        "FROM scratch AS a\nCOPY --chown=5:6 tree /t\nFROM scratch\nCOPY --from=a /t/sub /s\nCOPY --from=0 /t/a.txt /\n",
    ),
    case(
        "a stage on a stage",
        "FROM scratch AS a\nCOPY one /one\nENV A=1\nFROM a AS b\nCOPY two /two\nENV B=$A\nFROM b\nLABEL x=$B\n",
    ),
    case("an unused stage", "FROM scratch AS broken\nCOPY nothing /x\nFROM scratch\nCOPY one /\n"),
    Case {
        name: "a target",
        dockerfile: "FROM scratch AS a\nCOPY one /\nFROM scratch AS b\nCOPY two /\n",
        args: &["--target", "a"],
        except: &[],
    },
    case("working directories", "FROM scratch\nWORKDIR /a\nWORKDIR b/c\nCOPY one .\nCOPY two ./d/\n"),
    case(
        "environment",
        "FROM scratch\nENV A=1 B=\"x y\" C='a  b' D=e\\ f\nENV E $A and $B\nENV A=2 F=$A\nENV G=${H:-h} I=${A:+i} J=${A:-j}\n",
    ),
    case("labels", "FROM scratch\nENV V=1\nLABEL a=b \"c d\"=\"e f\" g=$V\nLABEL multi=\"a\\\nb\"\n"),
    case("commands as lists", "FROM scratch\nENTRYPOINT [\"/e\", \"x\"]\nCMD [\"a\", \"$B\"]\n"),
    case("commands of a shell", "FROM scratch\nENTRYPOINT /e $A\nCMD run \"this\"\n"),
    case(
        "an entrypoint forgets the base's command",
        "FROM scratch AS a\nCMD [\"x\"]\nFROM a\nENTRYPOINT [\"y\"]\n",
    ),
    Case {
        name: "another shell",
        dockerfile: "FROM scratch\nSHELL [\"/bin/zsh\", \"-ec\"]\nCMD echo hi\n",
        args: &[],
        except: &[(CONFIG, "buildah has no SHELL in the OCI format")],
    },
    case("ports", "FROM scratch\nENV P=90\nEXPOSE 80 81/udp $P\n"),
    Case {
        name: "volumes",
        dockerfile: "FROM scratch\nVOLUME /a /b\nVOLUME [\"/c d\"]\n",
        args: &[],
        except: &[("c d", "buildah makes the directory; BuildKit leaves that to the container")],
    },
    case("user and signal", "FROM scratch\nUSER 12:34\nSTOPSIGNAL SIGQUIT\n"),
    case("comments and continued lines", "# c\nFROM scratch\n\n  # c\nCOPY one \\\n# c\n  two \\\n  /d/\n"),
    Case {
        name: "another escape",
        dockerfile: "# escape=`\nFROM scratch\nCOPY one `\n  /d/\nENV A=b\\c\n",
        args: &[],
        except: &[(CONFIG, "buildah takes the backslash for an escape all the same")],
    },
    Case {
        name: "arguments",
        dockerfile: "ARG N=one\nFROM scratch AS one\nCOPY one /\nFROM scratch AS two\nCOPY two /\nFROM $N\nARG N\nARG D=d\nARG G\nENV E=$N-$D-$G\n",
        args: &["--build-arg", "N=two", "--build-arg", "G=given"],
        except: &[],
    },
    Case { name: "what is ignored", dockerfile: "FROM scratch\nCOPY ignored /i\n", args: &[], except: &[] },
    case(
        "steps",
        "FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/busybox\nENV A=1\nWORKDIR /w\nRUN /bin/busybox mkdir -p d/e && echo \"$A\" > d/f && /bin/busybox chmod 600 d/f && /bin/busybox chown 3:4 d/f && /bin/busybox ln -s f d/l && /bin/busybox ln d/f d/h\nRUN /bin/busybox rm -r d/e\n",
    ),
    case(
        "a step as a user",
        "FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/busybox\nCOPY etc /etc\nRUN /bin/busybox mkdir /w && /bin/busybox chmod 777 /w\nUSER app\nRUN echo x > /w/x\n",
    ),
];

fn files(dir: &Path) {
    for (name, content) in [
        ("one", "1\n"),
        ("two", "2\n"),
        ("with space", "s\n"),
        ("tree/a.txt", "a\n"),
        ("tree/b.md", "b\n"),
        ("tree/sub/c.txt", "c\n"),
        ("tree/sub/deep/d", "d\n"),
        ("links/file", "f\n"),
        ("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:7:8::/:/bin/sh\n"),
        ("etc/group", "staff:x:50:\n"),
        ("rooted/usr/lib/x", "x\n"),
        ("fake.tar.gz", "no archive\n"),
        ("ignored/keep.txt", "k\n"),
        ("ignored/drop.log", "l\n"),
        ("ignored/sub/drop.log", "l\n"),
        ("ignored/sub/important.log", "i\n"),
        ("ignored/tmp/x", "x\n"),
        ("ignored/tmp/keep/y", "y\n"),
        (
            ".dockerignore",
            "**/*.log\n!ignored/sub/important.log\nignored/tmp/*\n!ignored/tmp/keep\n# c\nout\nDockerfile\n.dockerignore\nbusybox\n!busybox\n",
        ),
    ] {
        write(dir, name, content);
    }
    fs::set_permissions(dir.join("tree/a.txt"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(dir.join("tree/sub"), fs::Permissions::from_mode(0o711)).unwrap();
    symlink("one", dir.join("link")).unwrap();
    symlink("file", dir.join("links/relative")).unwrap();
    symlink("/etc/passwd", dir.join("links/absolute")).unwrap();
    symlink("nowhere", dir.join("links/dangling")).unwrap();
    symlink("usr/lib", dir.join("rooted/lib")).unwrap();
    let source = dir.join("tree").display().to_string();
    for (name, flag) in [("a.tar", ""), ("a.tar.gz", "z"), ("a.tar.bz2", "j"), ("a.tar.xz", "J")] {
        let to = dir.join(name).display().to_string();
        run("tar", &[&format!("-c{flag}f"), &to, "--owner=1", "--group=2", "-C", &source, "."]);
    }
}

fn of_buildah(dir: &Path, store: &Path, number: usize, case: &Case) -> Result<Image, String> {
    let archive = dir.join(format!("out/buildah-{number}.oci"));
    let buildah = |args: &[&str]| {
        let output = Command::new("buildah")
            .args(["--storage-driver", "vfs", "--root"])
            .arg(store.join("root"))
            .arg("--runroot")
            .arg(store.join("run"))
            .args(args)
            .output()
            .expect("buildah is installed by scripts/setup.sh");
        match output.status.success() {
            true => Ok(()),
            false => Err(text(&output)),
        }
    };
    let name = format!("case-{number}");
    let file = dir.join(format!("out/Dockerfile-{number}")).display().to_string();
    let context = dir.display().to_string();
    let bud =
        ["bud", "-q", "--isolation", "chroot", "--format", "oci", "--layers=false", "-t", &name, "-f", &file];
    buildah(&[&bud[..], case.args, &[&context]].concat())?;
    buildah(&["push", "-q", &name, &format!("oci-archive:{}", archive.display())])?;
    buildah(&["rmi", "-f", &name])?;
    Ok(Image::read(&archive))
}

/// The part of a configuration that containers notice.
fn noticed(image: &Image) -> Value {
    let config = &image.config["config"];
    let mut out = serde_json::Map::new();
    for key in
        ["Env", "Cmd", "Entrypoint", "WorkingDir", "User", "Labels", "ExposedPorts", "Volumes", "StopSignal"]
    {
        let mut value = config[key].clone();
        if let Some(labels) = value.as_object_mut().filter(|_| key == "Labels") {
            labels.remove("io.buildah.version");
        }
        if let Some(env) = value.as_array_mut().filter(|_| key == "Env") {
            // Buildah keeps an image from `scratch` without one; BuildKit and we say it.
            env.retain(|it| !it.as_str().unwrap().starts_with("PATH="));
        }
        // As above: buildah leaves it out.
        let is_default = key == "WorkingDir" && value == "/";
        let is_empty = value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(serde_json::Map::is_empty)
            || value == "";
        if !value.is_null() && !is_default && !is_empty {
            out.insert(key.into(), value);
        }
    }
    Value::Object(out)
}

#[test]
fn images_are_those_that_buildah_builds() {
    let daemon = Daemon::start();
    let dir = context();
    files(dir.path());
    fs::create_dir(dir.path().join("out")).unwrap();
    let store = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        let file = dir.path().join(format!("out/Dockerfile-{number}"));
        fs::write(&file, case.dockerfile).unwrap();
        let archive = dir.path().join(format!("out/naru-{number}.oci"));
        let output = format!("type=oci,dest={}", archive.display());
        let file = file.display().to_string();
        let (built, theirs) = std::thread::scope(|scope| {
            let theirs = scope.spawn(|| of_buildah(dir.path(), store.path(), number, case));
            let built =
                build(&daemon, dir.path(), &[&["-q", "-f", &file, "-o", &output], case.args].concat());
            (built, theirs.join().unwrap())
        });
        let theirs = match theirs {
            Ok(it) => it,
            Err(why) => panic!("buildah cannot do `{}`: {why}", case.name),
        };
        if !built.status.success() {
            wrong.push(format!("{}: {}", case.name, text(&built)));
            continue;
        }
        let ours = Image::read(&archive);
        let names: std::collections::BTreeSet<&String> = ours.tree.keys().chain(theirs.tree.keys()).collect();
        for name in names {
            let is_stub = STUBS.contains(&name.as_str()) && case.dockerfile.contains("RUN ");
            let is_known = is_stub || case.except.iter().any(|it| it.0 == name);
            if ours.tree.get(name) != theirs.tree.get(name) && !is_known {
                wrong.push(format!(
                    "{}: {name}\n  ours:   {:?}\n  theirs: {:?}",
                    case.name,
                    ours.tree.get(name),
                    theirs.tree.get(name)
                ));
            }
        }
        let (ours, theirs) = (noticed(&ours), noticed(&theirs));
        if ours != theirs && !case.except.iter().any(|it| it.0 == CONFIG) {
            wrong.push(format!("{}: configuration\n  ours:   {ours}\n  theirs: {theirs}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    daemon.destroy();
}
