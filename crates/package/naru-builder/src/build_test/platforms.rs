//! Images for other machines.

use super::*;
use naru_image::{Platform, Reference};

/// A platform that no test machine can run.
const OTHER: &str = "linux/mips64le";

fn other() -> Platform {
    Platform::parse(OTHER).unwrap()
}

fn for_both(it: &Fixture, dockerfile: &str) -> BuildRequest {
    BuildRequest { platforms: vec!["linux".into(), OTHER.into()], ..it.request(dockerfile) }
}

/// The content of a file of the image for a platform.
async fn file_for(it: &Fixture, name: &str, platform: &Platform, path: &str) -> Option<String> {
    let view = it.store.ensure_for(name, PullPolicy::Never, platform).await.unwrap().view();
    view.read(Path::new(path), 1 << 20).unwrap().map(|it| String::from_utf8(it).unwrap())
}

#[tokio::test]
async fn one_dockerfile_for_two_machines() {
    let it = Fixture::new();
    it.write("bin-mips64le", "mips");
    it.write(&format!("bin-{}", Platform::here().architecture), "ours");
    let here = Platform::here().to_string();
    // What runs is of this machine; what is copied is of each.
    let dockerfile = with_shell(
        "FROM --platform=$BUILDPLATFORM base AS build\nARG TARGETARCH BUILDPLATFORM\n\
         RUN echo \"for $TARGETARCH on $BUILDPLATFORM\" > /out\n\
         FROM scratch\nARG TARGETPLATFORM\nARG TARGETARCH\nENV P=$TARGETPLATFORM\n\
         COPY --from=build /out /out\nCOPY bin-$TARGETARCH /bin/app\nCMD [\"/bin/app\"]\n",
    )
    .replace("FROM scratch AS base", "FROM --platform=$BUILDPLATFORM scratch AS base");
    let request =
        BuildRequest { names: vec![Reference::parse("shop:1").unwrap()], ..for_both(&it, &dockerfile) };
    let (image, log) = it.build_request(request).await.map_err(|it| it.report()).unwrap();
    assert!(log.contains("mips64le") && log.contains("[linux/"), "{log}");
    let index = it.store.as_index(&image.digest).unwrap().expect("two platforms are an index");
    let platforms: Vec<String> =
        index.manifests.iter().filter_map(|it| it.platform.as_ref()).map(Platform::to_string).collect();
    assert_eq!(platforms, [here.as_str(), OTHER]);
    for (platform, app) in [(Platform::here(), "ours"), (other(), "mips")] {
        assert_eq!(file_for(&it, "shop:1", &platform, "bin/app").await.as_deref(), Some(app));
        let out = file_for(&it, "shop:1", &platform, "out").await.unwrap();
        assert_eq!(out, format!("for {} on {here}\n", platform.architecture));
        let config = it.store.ensure_for("shop:1", PullPolicy::Never, &platform).await.unwrap().config;
        assert_eq!(config.platform(), Some(platform.clone()));
        assert_eq!(config.config.env_of("P"), Some(platform.to_string().as_str()));
    }
    // A pod here runs its own; the next build stands on either.
    assert_eq!(it.file(&image, "bin/app").await.as_deref(), Some("ours"));
    let (on_top, _) = it.build_request(for_both(&it, "FROM shop:1\nCOPY busybox /x\n")).await.unwrap();
    assert_eq!(file_for(&it, &on_top.reference, &other(), "bin/app").await.as_deref(), Some("mips"));
    let alone = BuildRequest { platforms: vec![OTHER.into()], ..it.request("FROM shop:1\n") };
    let (alone, _) = it.build_request(alone).await.unwrap();
    assert!(it.store.as_index(&alone.digest).unwrap().is_none(), "one platform is an image");
    let again = it.build_request(for_both(&it, "FROM shop:1\nCOPY busybox /x\n")).await.unwrap().0;
    assert_eq!(again.digest, on_top.digest);
    assert_eq!(again.cached_steps, again.total_steps);
}

#[tokio::test]
async fn what_cannot_run_is_refused_before_anything_is_built() {
    let it = Fixture::new();
    let dockerfile = with_shell("FROM base\nRUN echo hello\n");
    let report = it.build_request(for_both(&it, &dockerfile)).await.unwrap_err().report();
    for part in [
        "Dockerfile:4:1",
        "cannot be run here for linux/mips64le",
        "qemu-mips64el",
        "--platform=$BUILDPLATFORM",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert_eq!(it.runner.runs.load(Ordering::SeqCst), 0, "not for this machine either");
    for (platform, want) in [("windows/amd64", "images are of linux"), ("a b", "is not a platform")] {
        let request = BuildRequest { platforms: vec![platform.into()], ..it.request("FROM scratch\n") };
        let report = it.build_request(request).await.unwrap_err().report();
        assert!(report.contains(want), "{report}");
    }
    // The same base for one machine is not taken for the other.
    it.build("FROM scratch\nCOPY busybox /x\n").await.unwrap();
    let request = BuildRequest { platforms: vec![OTHER.into()], ..it.request("FROM naru.local/test/app\n") };
    let report = it.build_request(request).await.unwrap_err().report();
    assert!(report.contains("is not to be had for linux/mips64le"), "{report}");
    let request = BuildRequest { platforms: vec![OTHER.into()], ..it.request("FROM rust:1\n") };
    assert!(it.build_request(request).await.unwrap_err().report().contains("not to be had"));
}
