//! Layers in and out: hostile archives stay inside, overlayfs understands what we unpack, and a
//! container's writes come back as the archive that any tool would make of them. Runs as root.

use crate::{
    Base, CommitOptions, Config, Digest, Hashing, ImageStore, LastLink, PullPolicy, Reference, UnpackError,
    View, decompress, oci, pack, unpack,
};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

fn store(dir: &Path) -> ImageStore {
    ImageStore::open(Config { dir: dir.join("images"), ..Default::default() }).unwrap()
}

/// One raw entry, written without the checks that an honest archiver makes.
fn entry(out: &mut Vec<u8>, kind: u8, name: &str, link: &str, mode: u32, data: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(data.len() as u64);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_device_major(8).unwrap();
    header.set_device_minor(0).unwrap();
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn finish(mut archive: Vec<u8>) -> Vec<u8> {
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn unpacked(archive: &[u8]) -> (tempfile::TempDir, Result<crate::Unpacked, UnpackError>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("layer")).unwrap();
    fs::write(dir.path().join("marker"), "host").unwrap();
    let result = unpack(&mut &archive[..], &dir.path().join("layer"));
    assert_eq!(fs::read_to_string(dir.path().join("marker")).unwrap(), "host", "the host's file was written");
    let beside = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(beside, 2, "something was written beside the layer");
    (dir, result)
}

#[test]
fn nothing_is_written_outside_the_layer() {
    let refused: &[&[(u8, &str, &str)]] = &[
        &[(b'0', "../marker", "")],
        &[(b'0', "a/../../marker", "")],
        &[(b'1', "hard", "../marker")],
        &[(b'0', ".wh...", "")],
        &[(b'0', ".wh.", "")],
        &[(b'Z', "odd", "")],
    ];
    for entries in refused {
        let mut archive = Vec::new();
        for (kind, name, link) in *entries {
            entry(&mut archive, *kind, name, link, 0o644, b"");
        }
        let (_dir, result) = unpacked(&finish(archive));
        assert!(matches!(result, Err(UnpackError::Refused { .. })), "{entries:?}: {result:?}");
    }
    // A link that leads out, then a write, a hard link, a directory and a whiteout through it.
    for (kind, name, link) in [
        (b'0', "out/marker", ""),
        (b'1', "in", "out/marker"),
        (b'5', "out/new", ""),
        (b'0', "out/.wh.marker", ""),
    ] {
        for target in ["..", "../..", "/..", "/proc/self/cwd/.."] {
            let mut archive = Vec::new();
            entry(&mut archive, b'2', "out", target, 0o777, b"");
            entry(&mut archive, kind, name, link, 0o644, b"");
            let _ = unpacked(&finish(archive));
        }
    }
    // An absolute name lies inside.
    let mut archive = Vec::new();
    entry(&mut archive, b'0', "/etc/naru-marker", "", 0o644, b"x");
    let (dir, result) = unpacked(&finish(archive));
    assert_eq!(result.unwrap().entries, 1);
    assert!(dir.path().join("layer/etc/naru-marker").exists() && !Path::new("/etc/naru-marker").exists());
}

#[test]
fn a_directory_that_becomes_a_link_is_not_written_through() {
    let mut archive = Vec::new();
    entry(&mut archive, b'5', "d", "", 0o755, b"");
    entry(&mut archive, b'0', "d/first", "", 0o644, b"1");
    entry(&mut archive, b'2', "d", "/e", 0o777, b"");
    entry(&mut archive, b'5', "e", "", 0o755, b"");
    entry(&mut archive, b'0', "d/second", "", 0o644, b"2");
    let (dir, result) = unpacked(&finish(archive));
    result.unwrap();
    let at = |it: &str| dir.path().join("layer").join(it);
    assert!(at("d").is_symlink(), "the later entry wins");
    assert_eq!(fs::read_to_string(at("e/second")).unwrap(), "2", "as inside a container");
}

#[test]
fn attributes_links_and_whiteouts_survive() {
    let mut archive = Vec::new();
    entry(&mut archive, b'5', "bin", "", 0o755, b"");
    entry(&mut archive, b'0', "bin/su", "", 0o4755, b"x");
    entry(&mut archive, b'1', "bin/su2", "bin/su", 0o644, b"");
    entry(&mut archive, b'2', "bin/dangling", "nowhere", 0o777, b"");
    entry(&mut archive, b'0', "bin/.wh.gone", "", 0o644, b"");
    entry(&mut archive, b'0', "fresh/.wh..wh..opq", "", 0o644, b"");
    entry(&mut archive, b'4', "disk", "", 0o666, b"");
    let (dir, result) = unpacked(&finish(archive));
    assert_eq!(result.unwrap().devices_left_out, 1, "a disk is never unpacked");
    let meta = |it: &str| fs::symlink_metadata(dir.path().join("layer").join(it)).unwrap();
    assert_eq!(meta("bin/su").permissions().mode() & 0o7777, 0o4755);
    assert_eq!(meta("bin/su").mtime(), 1_000_000_000);
    assert_eq!(meta("bin").mtime(), 1_000_000_000);
    assert_eq!(meta("bin/su").ino(), meta("bin/su2").ino());
    assert!(meta("bin/gone").file_type().is_char_device() && meta("bin/gone").rdev() == 0);
    let opaque = xattr::get(dir.path().join("layer/fresh"), "trusted.overlay.opaque").unwrap();
    assert_eq!(opaque.as_deref(), Some(&b"y"[..]));
    assert!(!dir.path().join("layer/disk").exists());
}

#[test]
fn two_sizes_for_one_entry_are_refused() {
    // The PAX size says 0, the header says 1024: one reader would see the hidden entry, another not.
    let mut archive = Vec::new();
    entry(&mut archive, b'x', "pax", "", 0o644, b"10 size=0\n");
    let mut hidden = Vec::new();
    entry(&mut hidden, b'0', "hidden", "", 0o644, b"h");
    entry(&mut archive, b'0', "carrier", "", 0o644, &hidden);
    let (dir, result) = unpacked(&finish(archive));
    assert!(matches!(result, Err(UnpackError::Refused { .. })), "{result:?}");
    assert!(!dir.path().join("layer/hidden").exists());
}

#[test]
fn a_decompression_bomb_is_stopped() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = vec![0; 1 << 20];
    let mut header = tar::Header::new_ustar();
    header.set_path("zeros").unwrap();
    header.set_size(600 << 20);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    encoder.write_all(header.as_bytes()).unwrap();
    for _ in 0..600 {
        encoder.write_all(&zeros).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    let once = zstd::encode_all(&bomb[..], 1).unwrap();
    let ratio = (600 << 20) / bomb.len();
    if ratio > 250 {
        let mut plain = decompress(&bomb[..]).unwrap();
        let error = std::io::copy(&mut plain, &mut std::io::sink()).unwrap_err();
        assert!(error.to_string().contains("bomb"), "{error}");
    }
    let mut inner = Vec::new();
    decompress(&once[..]).unwrap().read_to_end(&mut inner).unwrap();
    assert_eq!(inner, bomb, "zstd is read too");
}

/// Everything below a directory, with what a layer keeps.
fn listing(root: &Path) -> Vec<String> {
    let mut lines: Vec<String> = walkdir::WalkDir::new(root)
        .min_depth(1)
        .into_iter()
        .map(|it| {
            let it = it.unwrap();
            let meta = fs::symlink_metadata(it.path()).unwrap();
            let name = it.path().strip_prefix(root).unwrap().display().to_string();
            let size = if meta.is_file() { meta.len() } else { 0 };
            let link = fs::read_link(it.path()).unwrap_or_default();
            format!(
                "{name} {:o} {}:{} {size} {} {}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                link.display(),
                meta.rdev()
            )
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn an_overlay_made_of_our_layers_shows_what_the_archives_say() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut first = Vec::new();
    for (name, data) in [("a/one", "1"), ("a/two", "2"), ("b/three", "3"), ("c", "4")] {
        entry(&mut first, b'0', name, "", 0o644, data.as_bytes());
    }
    let mut second = Vec::new();
    entry(&mut second, b'0', "a/.wh.one", "", 0o644, b"");
    entry(&mut second, b'0', "b/.wh..wh..opq", "", 0o644, b"");
    entry(&mut second, b'0', "b/four", "", 0o644, b"5");
    let mut layers = Vec::new();
    for archive in [finish(first), finish(second)] {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&archive).unwrap();
        let gzip = gzip.finish().unwrap();
        let digest = store.put_blob(&gzip).unwrap();
        let blob = oci::Descriptor::new(oci::media_type::LAYER_GZIP, digest, gzip.len() as u64);
        layers.push(store.ensure_layer(&blob, &Digest::of(&archive)).unwrap());
    }
    let config = oci::ImageConfig { os: "linux".into(), ..Default::default() };
    let digest = store.put_image(&config, &layers, Base::Own).unwrap();
    let image = store.load("test", &digest).unwrap();

    let at = |it: &str| dir.path().join(it);
    for it in ["upper", "work", "merged"] {
        fs::create_dir(at(it)).unwrap();
    }
    let lower: Vec<String> = image.lower_dirs.iter().map(|it| it.display().to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off",
        lower.join(":"),
        at("upper").display(),
        at("work").display()
    );
    let mounted =
        Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(at("merged")).status();
    assert!(mounted.unwrap().success());
    let names = |root: &Path| {
        listing(root).iter().map(|it| it.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&at("merged")), ["a", "a/two", "b", "b/four", "c"]);

    // The view agrees with the kernel.
    let view = image.view();
    let seen = |path: &str| view.resolve(Path::new(path), LastLink::Follow).unwrap().is_some();
    assert!(seen("a/two") && seen("b/four") && seen("c") && seen("a/../c"));
    assert!(!seen("a/one") && !seen("b/three"));
    let in_b: Vec<_> = view.read_directory(Path::new("b")).unwrap().into_keys().collect();
    assert_eq!(in_b, ["four"]);

    // A container deletes, replaces and adds; its upper directory becomes a layer.
    let merged = at("merged");
    fs::remove_file(merged.join("c")).unwrap();
    fs::remove_dir_all(merged.join("a")).unwrap();
    fs::create_dir(merged.join("a")).unwrap();
    fs::write(merged.join("a/new"), "6").unwrap();
    fs::write(merged.join("big"), vec![7; 300_000]).unwrap();
    fs::hard_link(merged.join("big"), merged.join("big2")).unwrap();
    fs::create_dir(merged.join("proc")).unwrap();
    symlink("/etc/passwd", merged.join("link")).unwrap();
    let before = listing(&merged);
    assert!(Command::new("umount").arg(&merged).status().unwrap().success());
    store
        .expect_commit("step/1", CommitOptions { time_max: Some(1_234_567_890), ..CommitOptions::default() });
    store.commit_blocking("step/1", &at("upper")).unwrap();
    assert_eq!(fs::read_dir(at("upper")).unwrap().count(), 0, "moved, not copied");
    let layer = store.take_committed("step/1").unwrap();
    assert!(store.take_committed("step/1").is_err(), "handed over once");
    layers.push(layer.clone());

    // Another store, given only the archives, shows the same.
    let digest = store.put_image(&config, &layers, Base::Own).unwrap();
    let manifest = store.manifest(&digest).unwrap();
    let other = ImageStore::open(Config { dir: at("other"), ..Default::default() }).unwrap();
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        other.put_blob(&fs::read(store.blob_path(&blob.digest)).unwrap()).unwrap();
    }
    other.put_blob(&fs::read(store.blob_path(&digest)).unwrap()).unwrap();
    let copy = other.load("copy", &digest).unwrap();
    let lower: Vec<String> = copy.lower_dirs.iter().map(|it| it.display().to_string()).collect();
    let options = format!("lowerdir={}", lower.join(":"));
    let mounted =
        Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged).status();
    assert!(mounted.unwrap().success());
    let mut want = before;
    want.retain(|it| !it.starts_with("proc "));
    assert_eq!(listing(&merged), want);
    assert_eq!(fs::symlink_metadata(merged.join("big")).unwrap().mtime(), 1_234_567_890);
    assert!(Command::new("umount").arg(&merged).status().unwrap().success());

    // GNU tar reads the archive and sees the same names.
    let blob = store.layer_blob(&layer).unwrap();
    let list = Command::new("tar").arg("-tzf").arg(store.blob_path(&blob.digest)).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    assert_eq!(
        list.lines().collect::<Vec<_>>(),
        ["a/", "a/.wh..wh..opq", "a/new", "big", "big2", ".wh.c", "link"]
    );
}

#[test]
fn long_names_and_attributes_go_through_an_archive() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let deep = from.join("d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f".repeat(200)), "x").unwrap();
    symlink("t".repeat(300), from.join("long-link")).unwrap();
    symlink("../a//b/./c", from.join("odd-link")).unwrap();
    xattr::set(&deep, "user.naru", b"yes").unwrap();
    fs::create_dir(&to).unwrap();
    let mut archive = Hashing::new(Vec::new());
    pack(&from, None, &mut archive).unwrap();
    let (archive, first, _) = archive.finish();
    unpack(&mut &archive[..], &to).unwrap();
    assert_eq!(listing(&from), listing(&to));
    let deep = to.join(deep.strip_prefix(&from).unwrap());
    assert_eq!(xattr::get(deep, "user.naru").unwrap().as_deref(), Some(&b"yes"[..]));
    let mut again = Hashing::new(Vec::new());
    pack(&to, None, &mut again).unwrap();
    assert_eq!(again.finish().1, first, "the same content is the same layer");
}

#[test]
fn a_view_never_leaves_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(dir.path().join("secret"), "s").unwrap();
    symlink("../secret", root.join("up")).unwrap();
    symlink("/secret", root.join("absolute")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    let view = View::of_directory(&root);
    for it in ["up", "absolute", "../secret"] {
        assert!(view.resolve(Path::new(it), LastLink::Follow).unwrap().is_none(), "{it}");
    }
    assert!(view.resolve(Path::new("loop"), LastLink::Follow).is_err());
    fs::write(root.join("secret"), "mine").unwrap();
    assert_eq!(view.read(Path::new("up"), 100).unwrap().unwrap(), b"mine");
}

#[tokio::test]
async fn names_find_images_and_the_store_is_an_oci_layout() {
    let dir = tempfile::tempdir().unwrap();
    let aliases =
        vec![("rust:1".to_owned(), "host".to_owned()), ("app".to_owned(), "naru.local/shop:v1".to_owned())];
    let store =
        ImageStore::open(Config { dir: dir.path().to_owned(), aliases, ..Default::default() }).unwrap();
    let build = |text: &str| {
        let root = store.scratch_dir().unwrap();
        fs::write(root.path().join("file"), text).unwrap();
        let layer =
            store.add_layer(root, CommitOptions { time_max: Some(0), ..CommitOptions::default() }).unwrap();
        let config = oci::ImageConfig {
            os: "linux".into(),
            architecture: oci::architecture().into(),
            ..Default::default()
        };
        store.put_image(&config, &[layer], Base::Own).unwrap()
    };
    let (one, two) = (build("one"), build("two"));
    assert_eq!(one, build("one"), "same content, same digest");
    let name = Reference::parse("naru.local/shop:v1").unwrap();
    store.tag(&name, &one, oci::media_type::MANIFEST).unwrap();
    store.tag(&name, &two, oci::media_type::MANIFEST).unwrap();
    assert_eq!(store.tags().unwrap().len(), 1, "a name moves");

    assert_eq!(store.ensure("naru.local/shop:v1", PullPolicy::IfNotPresent).await.unwrap().digest, two);
    assert_eq!(store.ensure("app", PullPolicy::Always).await.unwrap().digest, two);
    let by_digest = format!("naru.local/build@{one}");
    assert_eq!(store.ensure(&by_digest, PullPolicy::IfNotPresent).await.unwrap().digest, one);
    assert!(store.ensure("rust:1", PullPolicy::IfNotPresent).await.unwrap().host.is_some());
    let missing = store.ensure("naru.local/other:v1", PullPolicy::IfNotPresent).await.unwrap_err();
    assert!(missing.is_not_found());

    let out = dir.path().join("copy");
    let copied = Command::new("skopeo")
        .arg("copy")
        .arg(format!("oci:{}:naru.local/shop:v1", dir.path().display()))
        .arg(format!("dir:{}", out.display()))
        .output()
        .unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));

    // What has no name goes; what has one stays whole.
    let collected = store.gc(&Default::default(), std::time::Duration::ZERO).unwrap();
    assert!(collected.blobs >= 3 && collected.layers == 1, "{collected:?}");
    assert!(store.ensure(&by_digest, PullPolicy::IfNotPresent).await.is_err());
    assert_eq!(store.ensure("app", PullPolicy::Never).await.unwrap().digest, two);
}

#[test]
fn a_store_opened_after_a_power_cut_trusts_only_what_reached_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let layer = {
        let store = store(dir.path());
        let root = store.scratch_dir().unwrap();
        fs::write(root.path().join("file"), "x").unwrap();
        let layer = store.add_layer(root, CommitOptions::default()).unwrap();
        store.layer_blob(&layer).unwrap();
        layer
    };
    assert!(store(dir.path()).layer(&layer.diff_id).is_some(), "a restart keeps it");
    let record = dir.path().join("images/layers").join(format!("{}.json", layer.diff_id.hex()));
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = fs::read_to_string(&record).unwrap().replace(boot.trim(), "another-boot");
    fs::write(&record, text).unwrap();
    fs::write(dir.path().join("images/layers").join(layer.diff_id.hex()).join("file"), "torn").unwrap();
    let store = store(dir.path());
    assert!(store.layer(&layer.diff_id).is_none());
}

#[test]
fn mount_points_are_taken_out_again_through_no_link() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    // What a step could do to lead the removal astray: the parent of a mount point becomes a link outside.
    let outside = dir.path().join("outside");
    fs::create_dir_all(outside.join("secrets")).unwrap();
    fs::write(outside.join("marker"), "").unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir_all(upper.join("cache/of/step")).unwrap();
    fs::create_dir_all(upper.join("kept")).unwrap();
    fs::write(upper.join("kept/file"), "x").unwrap();
    fs::write(upper.join("empty"), "").unwrap();
    std::os::unix::fs::symlink(&outside, upper.join("run")).unwrap();
    let stubs = [
        "run/marker",
        "run/secrets",
        "cache/of/step",
        "cache/of",
        "cache",
        "kept",
        "empty",
        "../outside/marker",
    ];
    let options = CommitOptions { stubs: stubs.map(PathBuf::from).to_vec(), ..CommitOptions::default() };
    store.expect_commit("step", options);
    let layer = store.commit_blocking("step", &upper).unwrap();
    assert!(outside.join("marker").exists() && outside.join("secrets").exists());
    let mut names = listing(&store.layer_dir(&layer.diff_id));
    names.sort();
    assert!(
        names.iter().any(|it| it.contains("kept/file")) && names.iter().any(|it| it.contains("run")),
        "{names:?}"
    );
    assert!(!names.iter().any(|it| it.contains("cache") || it.contains("empty")), "{names:?}");
}

#[test]
fn an_archive_that_is_no_layer_hides_nothing() {
    let mut archive = Vec::new();
    entry(&mut archive, b'0', "dir/.wh.file", "", 0o644, b"x");
    let archive = finish(archive);
    let unpack = |whiteouts| {
        let dir = tempfile::tempdir().unwrap();
        let done = crate::unpack_as(&mut archive.as_slice(), dir.path(), whiteouts);
        (dir, done)
    };
    let (dir, done) = unpack(crate::Whiteouts::Keep);
    done.unwrap();
    assert_eq!(fs::read(dir.path().join("dir/.wh.file")).unwrap(), b"x");
    let (dir, done) = unpack(crate::Whiteouts::Refuse);
    assert!(done.unwrap_err().to_string().contains(".wh."));
    assert!(!dir.path().join("dir/file").exists());
}
