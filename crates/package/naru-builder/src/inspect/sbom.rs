//! The parts that an image is made of: packages of the distribution's database, of language package managers
//! where they are installed, of lock files, and of Go programs, which name what is in them. Written as SPDX 2.3
//! or CycloneDX 1.5.

use super::Layers;
use naru_image::{ImageStore, LastLink, LocalImage, View};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

const DATABASE_BYTES_MAX: u64 = 64 << 20; // a full desktop's has 10 MiB
const LOCK_BYTES_MAX: u64 = 32 << 20;
/// Where the text about a Go program's modules begins is looked for within this much of it.
const PROGRAM_BYTES_MAX: u64 = 256 << 20;

/// One part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Component {
    /// As package URLs name it: `deb`, `apk`, `npm`, `cargo`, `pypi`, `golang`.
    pub kind: String,
    /// `debian`, `alpine`; empty where there is none.
    pub namespace: String,
    pub name: String,
    pub version: String,
    pub license: String,
    /// The file that tells of it.
    pub found_in: String,
}

impl Component {
    /// The package URL.
    pub fn purl(&self) -> String {
        let encode = naru_objects::percent_encode;
        let namespace = match self.namespace.as_str() {
            "" => String::new(),
            it => format!("{}/", it.split('/').map(encode).collect::<Vec<_>>().join("/")),
        };
        format!("pkg:{}/{namespace}{}@{}", self.kind, encode(&self.name), encode(&self.version))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Spdx,
    CycloneDx,
}

/// Everything that can be told, and what could not be read. Blocks.
pub fn components(store: &ImageStore, image: &LocalImage) -> io::Result<(Vec<Component>, Vec<String>)> {
    let mut out: BTreeSet<Component> = BTreeSet::new();
    let mut notes = Vec::new();
    let view = image.view();
    let distribution = distribution(&view)?;
    let read = |path: &str| -> io::Result<Option<String>> {
        let bytes = view.read(Path::new(path), DATABASE_BYTES_MAX)?;
        Ok(bytes.map(|it| String::from_utf8_lossy(&it).into_owned()))
    };
    if let Some(text) = read("var/lib/dpkg/status")? {
        out.extend(dpkg(&text, &distribution, "/var/lib/dpkg/status"));
    }
    // Images without a package manager have a file for each package.
    if let Some((at, entry)) = view.resolve(Path::new("var/lib/dpkg/status.d"), LastLink::Follow)?
        && entry.meta.is_dir()
    {
        for name in view.read_directory(&at)?.into_keys() {
            let path = at.join(&name);
            if let Some(bytes) = view.read(&path, DATABASE_BYTES_MAX)? {
                let shown = format!("/{}", path.display());
                out.extend(dpkg(&String::from_utf8_lossy(&bytes), &distribution, &shown));
            }
        }
    }
    if let Some(text) = read("lib/apk/db/installed")? {
        out.extend(apk(&text, &distribution));
    }
    for database in ["var/lib/rpm/rpmdb.sqlite", "var/lib/rpm/Packages", "usr/lib/sysimage/rpm/rpmdb.sqlite"]
    {
        if view.resolve(Path::new(database), LastLink::Follow)?.is_some() {
            notes.push(format!("the packages in /{database} are not listed: the RPM database is not read"));
        }
    }
    let layers = Layers::read(image, |index| store.layer_dir(&image.layers[index].diff_id))?;
    for file in &layers.files {
        if !file.meta.is_file() || !layers.is_seen(file) {
            continue;
        }
        let shown = format!("/{}", file.path.display());
        let name = file.path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
        let parent =
            file.path.parent().and_then(Path::file_name).and_then(|it| it.to_str()).unwrap_or_default();
        let reader: Option<fn(&str, &str) -> Vec<Component>> = match name {
            "package-lock.json" | ".package-lock.json" => Some(npm_lock),
            "Cargo.lock" => Some(cargo_lock),
            "requirements.txt" => Some(requirements),
            "poetry.lock" | "uv.lock" => Some(poetry_lock),
            "go.sum" => Some(go_sum),
            "METADATA" if parent.ends_with(".dist-info") => Some(python_metadata),
            "PKG-INFO" if parent.ends_with(".egg-info") => Some(python_metadata),
            _ => None,
        };
        if let Some(reader) = reader {
            if file.meta.len() > LOCK_BYTES_MAX {
                notes.push(format!("{shown} is too large to be read"));
                continue;
            }
            let text = String::from_utf8_lossy(&std::fs::read(&file.real)?).into_owned();
            out.extend(reader(&text, &shown));
            continue;
        }
        let is_program = std::os::unix::fs::PermissionsExt::mode(&file.meta.permissions()) & 0o111 != 0;
        if is_program && file.meta.len() > 100_000 {
            out.extend(go_program(&file.real, &shown)?);
        }
    }
    Ok((out.into_iter().collect(), notes))
}

/// `ID` of `os-release`.
fn distribution(view: &View) -> io::Result<String> {
    for path in ["etc/os-release", "usr/lib/os-release"] {
        if let Some(bytes) = view.read(Path::new(path), 1 << 20)? {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let id = text.lines().find_map(|it| it.strip_prefix("ID="));
            return Ok(id.unwrap_or_default().trim_matches('"').to_owned());
        }
    }
    Ok(String::new())
}

fn component(kind: &str, namespace: &str, name: &str, version: &str, found_in: &str) -> Component {
    Component {
        kind: kind.into(),
        namespace: namespace.into(),
        name: name.into(),
        version: version.into(),
        license: String::new(),
        found_in: found_in.into(),
    }
}

fn dpkg(text: &str, distribution: &str, found_in: &str) -> Vec<Component> {
    let namespace = if distribution.is_empty() { "debian" } else { distribution };
    let of = |paragraph: &str| {
        let field = |name: &str| paragraph.lines().find_map(|it| it.strip_prefix(name)?.strip_prefix(": "));
        // Removed ones with their configuration left are listed, too.
        if field("Status").is_some_and(|it| !it.ends_with(" installed")) {
            return None;
        }
        Some(component("deb", namespace, field("Package")?, field("Version")?, found_in))
    };
    text.split("\n\n").filter_map(of).collect()
}

fn apk(text: &str, distribution: &str) -> Vec<Component> {
    let namespace = if distribution.is_empty() { "alpine" } else { distribution };
    let of = |paragraph: &str| {
        let field = |name: &str| paragraph.lines().find_map(|it| it.strip_prefix(name));
        let mut it = component("apk", namespace, field("P:")?, field("V:")?, "/lib/apk/db/installed");
        it.license = field("L:").unwrap_or_default().to_owned();
        Some(it)
    };
    text.split("\n\n").filter_map(of).collect()
}

fn npm_name(name: &str) -> (&str, &str) {
    name.split_once('/').filter(|it| it.0.starts_with('@')).unwrap_or(("", name))
}

fn npm_lock(text: &str, found_in: &str) -> Vec<Component> {
    let Ok(lock) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let mut out = Vec::new();
    let mut add = |name: &str, it: &Value| {
        let Some(version) = it["version"].as_str() else { return };
        let (namespace, name) = npm_name(name);
        let mut part = component("npm", namespace, name, version, found_in);
        part.license = it["license"].as_str().unwrap_or_default().to_owned();
        out.push(part);
    };
    match lock["packages"].as_object() {
        Some(packages) => {
            for (path, it) in packages {
                if let Some((_, name)) = path.rsplit_once("node_modules/") {
                    add(name, it);
                }
            }
        }
        None => {
            for (name, it) in lock["dependencies"].as_object().into_iter().flatten() {
                add(name, it);
            }
        }
    }
    out
}

/// `[[package]]` tables of a TOML lock file: `name` and `version` as text.
fn tables(text: &str) -> Vec<(String, String, bool)> {
    let mut out = Vec::new();
    for table in text.split("[[package]]").skip(1) {
        let field = |name: &str| {
            table.lines().take_while(|it| !it.starts_with('[')).find_map(|line| {
                let (key, value) = line.split_once('=')?;
                (key.trim() == name).then(|| value.trim().trim_matches('"').to_owned())
            })
        };
        if let (Some(name), Some(version)) = (field("name"), field("version")) {
            out.push((name, version, field("source").is_some()));
        }
    }
    out
}

fn cargo_lock(text: &str, found_in: &str) -> Vec<Component> {
    // What has no source is the program's own.
    let all = tables(text).into_iter().filter(|it| it.2);
    all.map(|(name, version, _)| component("cargo", "", &name, &version, found_in)).collect()
}

/// Names on PyPI are the same with `-`, `_` and `.`.
fn python_name(name: &str) -> String {
    name.to_ascii_lowercase().replace(['_', '.'], "-")
}

fn poetry_lock(text: &str, found_in: &str) -> Vec<Component> {
    let all = tables(text).into_iter();
    all.map(|(name, version, _)| component("pypi", "", &python_name(&name), &version, found_in)).collect()
}

fn requirements(text: &str, found_in: &str) -> Vec<Component> {
    let of = |line: &str| {
        let line = line.split(['#', ';']).next()?.trim();
        // Only what is fixed names a version.
        let (name, version) = line.split_once("==")?;
        let name = name.split('[').next()?.trim();
        let version = version.split_whitespace().next()?.trim_end_matches('\\');
        Some(component("pypi", "", &python_name(name), version, found_in))
    };
    text.lines().filter_map(of).collect()
}

fn python_metadata(text: &str, found_in: &str) -> Vec<Component> {
    let field = |name: &str| {
        text.lines().take_while(|it| !it.is_empty()).find_map(|it| it.strip_prefix(name)?.strip_prefix(": "))
    };
    let (Some(name), Some(version)) = (field("Name"), field("Version")) else { return Vec::new() };
    let mut it = component("pypi", "", &python_name(name), version, found_in);
    it.license = field("License-Expression").unwrap_or_default().to_owned();
    vec![it]
}

fn go_module(path: &str, version: &str, found_in: &str) -> Component {
    let (namespace, name) = path.rsplit_once('/').unwrap_or(("", path));
    component("golang", namespace, name, version, found_in)
}

fn go_sum(text: &str, found_in: &str) -> Vec<Component> {
    let of = |line: &str| {
        let mut words = line.split_whitespace();
        let (path, version) = (words.next()?, words.next()?);
        // The lines for `go.mod` alone name versions that were only looked at.
        (!version.ends_with("/go.mod")).then(|| go_module(path, version, found_in))
    };
    text.lines().filter_map(of).collect()
}

/// What the Go linker wrote into a program (Go 1.18 and later): the modules that it is built from.
fn go_program(path: &Path, found_in: &str) -> io::Result<Vec<Component>> {
    const MAGIC: &[u8] = b"\xff Go buildinf:";
    let mut bytes = Vec::new();
    let mut file = File::open(path)?;
    let mut head = [0; 4];
    if file.read_exact(&mut head).is_err() || &head != b"\x7fELF" {
        return Ok(Vec::new());
    }
    file.take(PROGRAM_BYTES_MAX).read_to_end(&mut bytes)?;
    let Some(at) = bytes.windows(MAGIC.len()).position(|it| it == MAGIC) else { return Ok(Vec::new()) };
    // 32 bytes of header, then two texts, each after its length.
    let is_inline = bytes.get(at + 15).is_some_and(|it| it & 2 != 0);
    let Some(rest) = bytes.get(at + 32..).filter(|_| is_inline) else { return Ok(Vec::new()) };
    let Some((version, rest)) = go_text(rest) else { return Ok(Vec::new()) };
    let Some((modules, _)) = go_text(rest) else { return Ok(Vec::new()) };
    let mut out = vec![component("golang", "", "stdlib", version.trim_start_matches("go"), found_in)];
    for line in String::from_utf8_lossy(modules.as_bytes()).lines() {
        let mut words = line.split('\t');
        if let (Some("dep" | "=>"), Some(path), Some(version)) = (words.next(), words.next(), words.next()) {
            out.push(go_module(path, version, found_in));
        }
    }
    Ok(out)
}

fn go_text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (mut length, mut shift, mut used) = (0usize, 0, 0);
    loop {
        let byte = *bytes.get(used)?;
        used += 1;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
        shift += 7;
        if shift > 28 {
            return None;
        }
    }
    let text = bytes.get(used..used + length)?;
    // The modules stand between two marks of 16 bytes.
    let inner = match text.len() > 33 && text[text.len() - 17] == b'\n' {
        true => &text[16..text.len() - 16],
        false => text,
    };
    Some((String::from_utf8_lossy(inner).into_owned(), &bytes[used + length..]))
}

/// The document. `created` is RFC 3339.
pub fn document(
    format: Format,
    image: &str,
    digest: &str,
    created: &str,
    components: &[Component],
    notes: &[String],
) -> Value {
    let hex = digest.rsplit(':').next().unwrap_or(digest);
    match format {
        Format::Spdx => {
            let id = |index: usize| format!("SPDXRef-Package-{index}");
            let license = |it: &Component| match is_license(&it.license) {
                true => it.license.clone(),
                false => "NOASSERTION".into(),
            };
            let mut packages = vec![json!({
                "SPDXID": "SPDXRef-Image", "name": image, "versionInfo": digest,
                "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
                "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION",
                "copyrightText": "NOASSERTION", "primaryPackagePurpose": "CONTAINER",
                "checksums": [{"algorithm": "SHA256", "checksumValue": hex}],
            })];
            let mut relationships = vec![json!({
                "spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES",
                "relatedSpdxElement": "SPDXRef-Image",
            })];
            for (index, it) in components.iter().enumerate() {
                packages.push(json!({
                    "SPDXID": id(index), "name": it.name, "versionInfo": it.version,
                    "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
                    "licenseConcluded": "NOASSERTION", "licenseDeclared": license(it),
                    "copyrightText": "NOASSERTION", "sourceInfo": format!("found in {}", it.found_in),
                    "externalRefs": [{
                        "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl",
                        "referenceLocator": it.purl(),
                    }],
                }));
                relationships.push(json!({
                    "spdxElementId": "SPDXRef-Image", "relationshipType": "CONTAINS",
                    "relatedSpdxElement": id(index),
                }));
            }
            let mut document = json!({
                "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT",
                "name": image, "documentNamespace": format!("https://naru.dev/spdx/{hex}"),
                "creationInfo": {"created": created, "creators": ["Tool: naru"]},
                "packages": packages, "relationships": relationships,
            });
            if !notes.is_empty() {
                document["comment"] = json!(notes.join("; "));
            }
            document
        }
        Format::CycloneDx => {
            let parts: Vec<Value> = components
                .iter()
                .map(|it| {
                    let mut part = json!({
                        "type": "library", "bom-ref": format!("{}#{}", it.purl(), it.found_in),
                        "name": it.name, "version": it.version, "purl": it.purl(),
                        "properties": [{"name": "naru:found-in", "value": it.found_in}],
                    });
                    if !it.namespace.is_empty() {
                        part["group"] = json!(it.namespace);
                    }
                    if is_license(&it.license) {
                        part["licenses"] = json!([{"expression": it.license}]);
                    }
                    part
                })
                .collect();
            let properties: Vec<Value> =
                notes.iter().map(|it| json!({"name": "naru:note", "value": it})).collect();
            json!({
                "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
                "serialNumber": format!("urn:uuid:{}", uuid_of(hex)),
                "metadata": {
                    "timestamp": created,
                    "tools": {"components": [{"type": "application", "name": "naru"}]},
                    "component": {
                        "type": "container", "bom-ref": "image", "name": image, "version": digest,
                        "hashes": [{"alg": "SHA-256", "content": hex}],
                    },
                    "properties": properties,
                },
                "components": parts,
            })
        }
    }
}

/// An identifier or an expression of SPDX, as far as its form tells.
fn is_license(text: &str) -> bool {
    let is_word = |it: &str| {
        !it.is_empty()
            && it.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '+' | '(' | ')'))
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    words.len() % 2 == 1
        && words.iter().enumerate().all(|(index, it)| match index % 2 {
            0 => is_word(it),
            _ => matches!(*it, "AND" | "OR" | "WITH"),
        })
}

/// A version 8 UUID (RFC 9562: our own bits) of a digest: the same image has the same.
fn uuid_of(hex: &str) -> String {
    let it = hex.get(..32).unwrap_or("00000000000000000000000000000000");
    format!("{}-{}-8{}-8{}-{}", &it[..8], &it[8..12], &it[13..16], &it[17..20], &it[20..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(parts: &[Component]) -> Vec<String> {
        parts.iter().map(Component::purl).collect()
    }

    #[test]
    fn databases_and_lock_files_are_read() {
        let status = "Package: libc6\nStatus: install ok installed\nVersion: 2.36-9+deb12u4\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n";
        assert_eq!(names(&dpkg(status, "debian", "x")), ["pkg:deb/debian/libc6@2.36-9%2Bdeb12u4"]);
        let installed = "C:Q1\nP:musl\nV:1.2.5-r0\nL:MIT\n\nP:zlib\nV:1.3\n";
        let apk = apk(installed, "alpine");
        assert_eq!(names(&apk), ["pkg:apk/alpine/musl@1.2.5-r0", "pkg:apk/alpine/zlib@1.3"]);
        assert_eq!(apk[0].license, "MIT");
        let lock = r#"{"lockfileVersion":3,"packages":{"":{"version":"1"},"node_modules/a":{"version":"1.0.0","license":"MIT"},"node_modules/a/node_modules/@s/b":{"version":"2.0.0"}}}"#;
        assert_eq!(names(&npm_lock(lock, "x")), ["pkg:npm/a@1.0.0", "pkg:npm/%40s/b@2.0.0"]);
        let lock = "version = 4\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"serde\"\nversion = \"1.0.0\"\nsource = \"registry\"\ndependencies = [\n \"x\",\n]\n";
        assert_eq!(names(&cargo_lock(lock, "x")), ["pkg:cargo/serde@1.0.0"]);
        assert_eq!(
            names(&requirements(
                "# c\nFlask_Login[x]==1.0 --hash=y\nloose>=1\nb==2 ; python_version<'3'\n",
                "x"
            )),
            ["pkg:pypi/flask-login@1.0", "pkg:pypi/b@2"]
        );
        assert_eq!(
            names(&go_sum("github.com/a/b v1.0.0 h1:x\ngithub.com/a/b v1.0.0/go.mod h1:y\n", "x")),
            ["pkg:golang/github.com/a/b@v1.0.0"]
        );
        assert_eq!(names(&python_metadata("Name: A.B\nVersion: 3\n\nName: no\n", "x")), ["pkg:pypi/a-b@3"]);
    }

    #[test]
    fn licenses_are_only_told_when_they_are_spdx() {
        assert!(is_license("MIT") && is_license("Apache-2.0 OR MIT") && is_license("GPL-2.0-only WITH x"));
        assert!(!is_license("") && !is_license("BSD 3 clause") && !is_license("see LICENSE"));
    }
}
