//! What a client's attributes ask for. Everything is honoured, warned about or refused; pure.

use std::collections::BTreeMap;

use serde_json::Value;

use super::grpc::{Result, Status};
use super::wire::Exporter;

/// Directories that the client lends, by the names that it gave them.
pub const CONTEXT: &str = "context";
pub const DOCKERFILE: &str = "dockerfile";

#[derive(Debug, Default, PartialEq)]
pub struct Asked {
    pub filename: String,
    pub target: Option<String>,
    pub platforms: Vec<String>,
    pub no_cache: bool,
    pub pull: bool,
    pub args: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// Further directories of the client, by what `FROM` and `COPY --from` call them.
    pub directories: BTreeMap<String, String>,
    /// Images that stand for names: `docker-image://name`.
    pub images: BTreeMap<String, String>,
    pub cache_from: Vec<String>,
    pub context: String,
    pub dockerfile: String,
    /// Something else than a build: `frontend.lint`.
    pub request: Option<String>,
    pub warnings: Vec<String>,
}

fn refused(what: impl std::fmt::Display, instead: &str) -> Status {
    Status::refused(format!("{what} is not supported by builds here: {instead}"))
}

/// Reads the attributes of the Dockerfile frontend.
pub fn read(attrs: &BTreeMap<String, String>, imports: &[Exporter]) -> Result<Asked> {
    let mut asked = Asked {
        filename: "Dockerfile".into(),
        context: CONTEXT.into(),
        dockerfile: DOCKERFILE.into(),
        ..Asked::default()
    };
    for (key, value) in attrs {
        let (name, rest) = key.split_once(':').unwrap_or((key, ""));
        match (name, rest) {
            ("filename", _) => asked.filename.clone_from(value),
            ("target", _) => asked.target = Some(value.clone()).filter(|it| !it.is_empty()),
            ("platform", _) => asked.platforms = list(value),
            ("no-cache", _) if value.is_empty() => asked.no_cache = true,
            ("no-cache", _) => {
                return Err(refused("--no-cache-filter", "use --no-cache for the whole build"));
            }
            ("image-resolve-mode", _) => asked.pull = value == "pull",
            ("build-arg", "") => {}
            ("build-arg", it) => {
                asked.args.insert(it.to_owned(), value.clone());
            }
            ("label", it) => {
                asked.labels.insert(it.to_owned(), value.clone());
            }
            ("contextkey", _) => asked.context.clone_from(value),
            ("dockerfilekey", _) => asked.dockerfile.clone_from(value),
            ("context", "") => {
                return Err(refused(
                    format!("the context {value}"),
                    "clone it, or unpack it, and build the directory",
                ));
            }
            ("context", it) => context(&mut asked, it, value)?,
            ("cache-imports", _) => {
                let list: Vec<Value> = serde_json::from_str(value)
                    .map_err(|it| Status::failed(format!("cache-imports cannot be read: {it}")))?;
                for entry in list {
                    let kind = entry["Type"].as_str().unwrap_or_default().to_owned();
                    let attrs = entry["Attrs"].as_object().into_iter().flatten();
                    let attrs =
                        attrs.map(|(key, it)| (key.clone(), it.as_str().unwrap_or_default().to_owned()));
                    import(&mut asked, &Exporter { kind, attrs: attrs.collect() });
                }
            }
            ("requestid", _) => asked.request = Some(value.clone()),
            ("attest", "provenance") => {} // every build's provenance is signed and kept
            ("attest", it) => asked.warnings.push(format!(
                "{it} is not attached to the image\nnaru image sbom prints it for any image, at any time"
            )),
            ("add-hosts", _) => {
                return Err(refused("--add-host", "write the names into the step that needs them"));
            }
            ("force-network-mode", _) => {
                return Err(refused(
                    format!("--network {value}"),
                    "steps have the network of a pod; RUN --network=none takes it away",
                ));
            }
            ("shm-size", _) => return Err(refused("--shm-size", "use RUN --mount=type=tmpfs")),
            ("ulimit", _) => return Err(refused("--ulimit", "set it in the step that needs it")),
            ("cgroup-parent", _) => {
                return Err(refused("--cgroup-parent", "builds have a slice of their own"));
            }
            ("contextsubdir", _) => {
                return Err(refused("a folder of a remote context", "build the directory"));
            }
            // Said for provenance alone, or of no effect on a result.
            (
                "cmdline" | "frontend.caps" | "local-sessionid" | "multi-platform" | "sharedkey" | "source"
                | "vcs",
                _,
            ) => {}
            _ => return Err(refused(format!("the attribute {key}={value}"), "leave it out")),
        }
    }
    for it in imports {
        import(&mut asked, it);
    }
    for list in [&mut asked.cache_from, &mut asked.warnings] {
        list.sort();
        list.dedup();
    }
    Ok(asked)
}

fn list(text: &str) -> Vec<String> {
    text.split(',').filter(|it| !it.is_empty()).map(str::to_owned).collect()
}

fn context(asked: &mut Asked, name: &str, value: &str) -> Result<()> {
    if let Some(directory) = value.strip_prefix("local:") {
        asked.directories.insert(name.to_owned(), directory.to_owned());
        return Ok(());
    }
    if value.starts_with("docker-image://") {
        asked.images.insert(name.to_owned(), value.to_owned());
        return Ok(());
    }
    Err(refused(format!("the context {name}={value}"), "a directory can be one, and docker-image://name"))
}

/// Caches elsewhere make builds faster and never different, so one that is not spoken is no reason to fail.
fn no_such_cache(flag: &str, kind: &str) -> String {
    format!(
        "{flag} type={kind} is not used\nthis machine keeps its cache by content; type=registry,ref=NAME shares it with others"
    )
}

fn import(asked: &mut Asked, import: &Exporter) {
    match (import.kind.as_str(), import.attrs.get("ref")) {
        ("registry", Some(reference)) => asked.cache_from.push(reference.clone()),
        (kind, _) => asked.warnings.push(no_such_cache("--cache-from", kind)),
    }
}

/// Where the steps are sent to, as the builder takes it, and what is to be said about the rest.
pub fn cache_exports(exports: &[Exporter]) -> (Vec<String>, Vec<String>) {
    let (mut to, mut warnings) = (Vec::new(), Vec::new());
    for export in exports {
        match (export.kind.as_str(), export.attrs.get("ref")) {
            ("registry", Some(reference)) => {
                let mode = export.attrs.get("mode").filter(|it| *it == "max");
                to.push(format!("{reference}{}", if mode.is_some() { ",mode=max" } else { "" }));
            }
            (kind, _) => warnings.push(no_such_cache("--cache-to", kind)),
        }
    }
    (to, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn attributes_become_an_order() {
        let given = attrs(&[
            ("filename", "x.Dockerfile"),
            ("build-arg:A", "b"),
            ("label:l", "m"),
            ("no-cache", ""),
            ("image-resolve-mode", "pull"),
            ("platform", "linux/amd64,linux/arm64"),
            ("context:base", "docker-image://b:1"),
            ("context:files", "local:files"),
            ("cache-imports", r#"[{"Type":"registry","Attrs":{"ref":"r/c"}}]"#),
            ("attest:provenance", "mode=min,inline-only=true"),
            ("attest:sbom", ""),
            ("vcs:revision", "abc"),
        ]);
        let asked = read(&given, &[]).unwrap();
        assert_eq!(asked.filename, "x.Dockerfile");
        assert_eq!((asked.no_cache, asked.pull, asked.platforms.len()), (true, true, 2));
        assert_eq!(asked.directories, attrs(&[("files", "files")]));
        assert_eq!(asked.images, attrs(&[("base", "docker-image://b:1")]));
        assert_eq!(asked.cache_from, ["r/c"]);
        assert!(asked.warnings[0].starts_with("sbom"));
    }

    #[test]
    fn what_is_not_honoured_is_refused_by_name() {
        for (key, value, said) in [
            ("force-network-mode", "host", "--network host"),
            ("context", "https://example.org/a.git", "https://example.org/a.git"),
            ("context:x", "input:x", "x=input:x"),
            ("news", "1", "news=1"),
        ] {
            let status = read(&attrs(&[(key, value)]), &[]).unwrap_err();
            assert!(status.message.contains(said), "{}", status.message);
        }
    }

    #[test]
    fn a_cache_that_is_not_spoken_is_told() {
        let kind = |it: &str| Exporter { kind: it.into(), attrs: attrs(&[("ref", "r/c"), ("mode", "max")]) };
        assert!(
            read(&BTreeMap::new(), &[kind("gha")]).unwrap().warnings[0].contains("--cache-from type=gha")
        );
        let (to, warnings) = cache_exports(&[kind("registry"), kind("local")]);
        assert_eq!(to, ["r/c,mode=max"]);
        assert!(warnings[0].contains("--cache-to type=local"));
    }
}
