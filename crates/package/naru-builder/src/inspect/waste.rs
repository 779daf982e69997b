//! Bytes that an image carries for nothing: files that a later layer deletes or replaces, the same content
//! twice, what package managers leave behind, tools that only the build needed.

use super::{Advice, FileUse, LayerFile, Layers};
use naru_image::Hashing;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const WORTH_SAYING_BYTES: u64 = 256 << 10; // less is not worth a person's minute
const DUPLICATE_BYTES_MIN: u64 = 64 << 10; // small files repeat everywhere
const FILES_SHOWN: usize = 10;

/// What package managers leave behind, and how to avoid it.
const LEFTOVERS: &[(&str, &str, &str)] = &[
    ("apt", "var/lib/apt/lists", "end the same RUN with `&& rm -rf /var/lib/apt/lists/*`"),
    ("apt", "var/cache/apt", "end the same RUN with `&& apt-get clean`"),
    ("apk", "var/cache/apk", "write `apk add --no-cache`"),
    ("apk", "etc/apk/cache", "write `apk add --no-cache`"),
    ("dnf", "var/cache/dnf", "end the same RUN with `&& dnf clean all`"),
    ("yum", "var/cache/yum", "end the same RUN with `&& yum clean all`"),
    ("pip", "root/.cache/pip", "write `pip install --no-cache-dir`, or mount a cache at /root/.cache/pip"),
    (
        "npm",
        "root/.npm",
        "mount a cache at /root/.npm, or end the same RUN with `&& npm cache clean --force`",
    ),
    ("yarn", "usr/local/share/.cache/yarn", "end the same RUN with `&& yarn cache clean`"),
    ("cargo", "root/.cargo/registry", "build in a stage of its own and `COPY --from` the program"),
    ("cargo", "usr/local/cargo/registry", "build in a stage of its own and `COPY --from` the program"),
    ("go", "root/.cache/go-build", "build in a stage of its own and `COPY --from` the program"),
    ("go", "root/go/pkg/mod", "build in a stage of its own and `COPY --from` the program"),
    ("go", "go/pkg/mod", "build in a stage of its own and `COPY --from` the program"),
    ("maven", "root/.m2", "build in a stage of its own and `COPY --from` the program"),
    ("gradle", "root/.gradle", "build in a stage of its own and `COPY --from` the program"),
];

/// A tool, and where its bytes are.
const BUILD_TOOLS: &[(&str, &[&str])] = &[
    ("a C compiler", &["usr/lib/gcc", "usr/libexec/gcc", "usr/include"]),
    ("the Rust toolchain", &["usr/local/rustup", "root/.rustup", "usr/local/cargo/bin", "root/.cargo/bin"]),
    ("the Go toolchain", &["usr/local/go", "usr/lib/go"]),
    ("the Java development kit's sources", &["opt/java/openjdk/jmods", "opt/java/openjdk/lib/src.zip"]),
    ("git", &["usr/lib/git-core", "usr/libexec/git-core"]),
];

pub(super) fn find(layers: &Layers) -> io::Result<Vec<Advice>> {
    let mut advice = Vec::new();
    // Files that were counted already: nothing is saved twice.
    let mut counted: BTreeSet<usize> = BTreeSet::new();
    hidden(layers, &mut counted, &mut advice);
    named(layers, &mut counted, &mut advice);
    duplicates(layers, &mut counted, &mut advice)?;
    Ok(advice)
}

fn of<'a>(files: impl Iterator<Item = &'a LayerFile>) -> (u64, Vec<FileUse>) {
    let mut uses: Vec<FileUse> = files
        .filter(|it| it.meta.is_file())
        .map(|it| FileUse { path: format!("/{}", it.path.display()), bytes: it.meta.len() })
        .collect();
    uses.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.path.cmp(&b.path)));
    let bytes = uses.iter().map(|it| it.bytes).sum();
    uses.truncate(FILES_SHOWN);
    (bytes, uses)
}

/// Files of a layer that no container sees, because a layer above deletes or replaces them.
fn hidden(layers: &Layers, counted: &mut BTreeSet<usize>, advice: &mut Vec<Advice>) {
    let mut by_layer: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, file) in layers.files.iter().enumerate() {
        if file.meta.is_file() && !layers.is_seen(file) {
            by_layer.entry(file.layer).or_default().push(index);
        }
    }
    for (layer, files) in by_layer {
        let (bytes, uses) = of(files.iter().map(|it| &layers.files[*it]));
        counted.extend(files);
        if bytes < WORTH_SAYING_BYTES {
            continue;
        }
        advice.push(Advice {
            rule: "deleted-later".into(),
            message: format!("{} of layer {} are deleted or replaced by a later one", size(bytes), layer + 1),
            hint: "do both in one `RUN`, or build in a stage of its own and `COPY --from` what stays".into(),
            saves_bytes: bytes,
            layer: Some(layer + 1),
            created_by: layers.created_by[layer].clone(),
            files: uses,
        });
    }
}

fn named(layers: &Layers, counted: &mut BTreeSet<usize>, advice: &mut Vec<Advice>) {
    let mut below = |directory: &str| -> BTreeMap<usize, Vec<usize>> {
        let mut by_layer: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, file) in layers.files.iter().enumerate() {
            if file.path.starts_with(directory) && !counted.contains(&index) {
                by_layer.entry(file.layer).or_default().push(index);
            }
        }
        counted.extend(by_layer.values().flatten().copied());
        by_layer
    };
    for (manager, directory, hint) in LEFTOVERS {
        for (layer, files) in below(directory) {
            let (bytes, uses) = of(files.iter().map(|it| &layers.files[*it]));
            if bytes < WORTH_SAYING_BYTES {
                continue;
            }
            advice.push(Advice {
                rule: "package-cache".into(),
                message: format!("{} that {manager} left in /{directory}", size(bytes)),
                hint: (*hint).to_owned(),
                saves_bytes: bytes,
                layer: Some(layer + 1),
                created_by: layers.created_by[layer].clone(),
                files: uses,
            });
        }
    }
    for (tool, directories) in BUILD_TOOLS {
        let files: Vec<usize> =
            directories.iter().flat_map(|it| below(it).into_values().flatten().collect::<Vec<_>>()).collect();
        let (bytes, uses) = of(files.iter().map(|it| &layers.files[*it]));
        if bytes < WORTH_SAYING_BYTES {
            continue;
        }
        advice.push(Advice {
            rule: "build-tools".into(),
            message: format!("{tool} is in the image: {}", size(bytes)),
            hint: "build in a stage of its own and `COPY --from` the result".into(),
            saves_bytes: bytes,
            files: uses,
            ..Advice::default()
        });
    }
}

/// The same content in several places, hard links aside.
fn duplicates(layers: &Layers, counted: &mut BTreeSet<usize>, advice: &mut Vec<Advice>) -> io::Result<()> {
    let mut by_size: HashMap<u64, Vec<usize>> = HashMap::new();
    let mut inodes = BTreeSet::new();
    for (index, file) in layers.files.iter().enumerate() {
        let is_large = file.meta.is_file() && file.meta.len() >= DUPLICATE_BYTES_MIN;
        if is_large && !counted.contains(&index) && inodes.insert((file.meta.dev(), file.meta.ino())) {
            by_size.entry(file.meta.len()).or_default().push(index);
        }
    }
    let mut by_content: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for index in by_size.into_values().filter(|it| it.len() > 1).flatten() {
        let mut hashing = Hashing::new(File::open(&layers.files[index].real)?);
        io::copy(&mut hashing, &mut io::sink())?;
        by_content.entry(hashing.finish().1.to_string()).or_default().push(index);
    }
    let mut all: Vec<usize> = Vec::new();
    let mut firsts: BTreeMap<usize, &Path> = BTreeMap::new();
    for files in by_content.into_values().filter(|it| it.len() > 1) {
        for index in &files[1..] {
            firsts.insert(*index, &layers.files[files[0]].path);
            all.push(*index);
        }
    }
    let (bytes, mut uses) = of(all.iter().map(|it| &layers.files[*it]));
    counted.extend(&all);
    if bytes < WORTH_SAYING_BYTES {
        return Ok(());
    }
    for it in &mut uses {
        let same =
            firsts.iter().find(|(index, _)| format!("/{}", layers.files[**index].path.display()) == it.path);
        if let Some((_, first)) = same {
            it.path = format!("{} (as /{})", it.path, first.display());
        }
    }
    advice.push(Advice {
        rule: "duplicate".into(),
        message: format!("{} are there more than once", size(bytes)),
        hint:
            "make the second a link, or leave it out; `chown` and `chmod` in a later `RUN` copy a file: use \
               `COPY --chown --chmod`"
                .into(),
        saves_bytes: bytes,
        files: uses,
        ..Advice::default()
    });
    Ok(())
}

fn size(bytes: u64) -> String {
    crate::keeper::size(bytes)
}
