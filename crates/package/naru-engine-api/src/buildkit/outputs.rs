//! Where a built image goes: the store, registries, or back to the client as an archive or as files.

use std::fs::File;
use std::io::{self, Seek, Write};

use naru_builder::BuiltImage;
use naru_image::Reference;

use super::files;
use super::grpc::{Result, Status};
use super::progress::Teller;
use super::session::Session;
use super::wire::{ControlSolve, Exporter};
use crate::answer::ToChannel;
use crate::caller::Caller;
use crate::engine::Engine;
use crate::error::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Store,
    /// An archive as `docker load` and OCI tools read it.
    Archive,
    /// The files, as an archive.
    Tar,
    /// The files.
    Files,
}

#[derive(Debug)]
pub struct Output {
    kind: Kind,
    pub names: Vec<String>,
    push: bool,
}

/// Of no effect here, because it is so anyway.
const AS_ASKED: &[(&str, &[&str])] = &[
    ("compression", &["gzip", ""]),
    ("danglingNamePrefix", &[]),
    ("dangling-name-prefix", &[]),
    ("force-compression", &["false"]),
    ("mode", &["", "copy"]),
    ("oci-mediatypes", &["true"]),
    ("platform-split", &["false"]),
    ("prefer-image-digest", &[]),
    ("store", &["true"]),
    ("tar", &["true"]),
    ("unpack", &[]),
];

/// What a request's exporters mean, in their order. Pure.
pub fn read(request: &ControlSolve) -> Result<Vec<Output>> {
    let old;
    let exporters = match request.exporters.is_empty() && !request.old_exporter.is_empty() {
        false => &request.exporters,
        true => {
            let attrs = request.old_exporter_attrs.clone().into_iter().collect();
            old = vec![Exporter { kind: request.old_exporter.clone(), attrs }];
            &old
        }
    };
    exporters.iter().map(one).collect()
}

fn one(exporter: &Exporter) -> Result<Output> {
    let kind = match exporter.kind.as_str() {
        "moby" | "image" => Kind::Store,
        "docker" | "oci" => Kind::Archive,
        "tar" => Kind::Tar,
        "local" => Kind::Files,
        other => return Err(Status::refused(format!("--output type={other} is not supported"))),
    };
    let mut output = Output { kind, names: Vec::new(), push: false };
    for (key, value) in &exporter.attrs {
        match key.as_str() {
            "name" => {
                output.names = value.split(',').filter(|it| !it.is_empty()).map(str::to_owned).collect()
            }
            "push" if kind == Kind::Store => output.push = value == "true",
            _ => {
                let known = AS_ASKED.iter().find(|(it, _)| it == key);
                if !known.is_some_and(|(_, values)| values.is_empty() || values.contains(&value.as_str())) {
                    return Err(Status::refused(format!(
                        "--output {key}={value} is not supported; leave it out"
                    )));
                }
            }
        }
    }
    Ok(output)
}

impl Output {
    pub async fn write(
        &self,
        number: usize,
        engine: &Engine,
        caller: Caller,
        session: &Session,
        image: &BuiltImage,
        teller: &mut Teller,
    ) -> Result<()> {
        let key = format!("output {number}");
        let what = match self.kind {
            Kind::Store => "exporting to image",
            Kind::Archive => "exporting an archive",
            Kind::Tar => "exporting to client tarball",
            Kind::Files => "exporting to client directory",
        };
        teller.begin(&key, what);
        let done = match self.kind {
            Kind::Store => {
                for name in &image.names {
                    teller.amount(&key, &format!("naming to {name}"), 0, true);
                }
                self.push(engine, caller, session, image, teller, &key).await
            }
            Kind::Archive => {
                let mut wanted = Vec::new();
                for name in &self.names {
                    wanted.push((
                        image.digest.clone(),
                        Some(Reference::parse(name).map_err(|it| Status::failed(it.to_string()))?),
                    ));
                }
                if wanted.is_empty() {
                    wanted.push((image.digest.clone(), None));
                }
                let store = engine.images.clone();
                bytes(session, number, move |out| crate::bundle::write_archive(&store, &wanted, out)).await
            }
            Kind::Tar => {
                let layers = layers(engine, image)?;
                bytes(session, number, move |out| Ok(naru_image::flatten(&layers, out)?)).await
            }
            Kind::Files => {
                let layers = layers(engine, image)?;
                let flat = tokio::task::spawn_blocking(move || -> io::Result<File> {
                    let mut archive = tempfile::tempfile()?;
                    let mut out = io::BufWriter::with_capacity(256 << 10, &mut archive);
                    naru_image::flatten(&layers, &mut out)?;
                    out.flush()?;
                    drop(out);
                    archive.rewind()?;
                    Ok(archive)
                });
                let flat = flat.await.map_err(|it| Status::failed(it.to_string()))?.map_err(Error::from)?;
                files::send(session.result(number)?, flat).await
            }
        };
        match &done {
            Ok(()) => teller.done(&key),
            Err(error) => teller.fail(&error.message),
        }
        done
    }

    async fn push(
        &self,
        engine: &Engine,
        caller: Caller,
        session: &Session,
        image: &BuiltImage,
        teller: &Teller,
        key: &str,
    ) -> Result<()> {
        if !self.push {
            return Ok(());
        }
        if self.names.is_empty() {
            return Err(Status::failed("tag is needed when pushing to registry"));
        }
        for name in &self.names {
            let target = Reference::parse(name).map_err(|it| Status::failed(it.to_string()))?;
            if target.is_local_only() {
                return Err(Status::failed(format!("{name} has no registry; give the image another name")));
            }
            let logins = caller.logins(&target.registry, session.credentials(&target.registry).await?);
            let id = format!("pushing {name}");
            teller.amount(key, &id, 0, false);
            engine.images.push(&image.digest, &target, &logins, &|_| {}).await.map_err(Error::from)?;
            teller.amount(key, &id, image.size, true);
        }
        Ok(())
    }
}

fn layers(engine: &Engine, image: &BuiltImage) -> Result<Vec<File>> {
    if engine.images.as_index(&image.digest).map_err(Error::from)?.is_some() {
        return Err(Status::refused(
            "the files of several platforms are not one tree: name one with --platform",
        ));
    }
    let manifest = engine.images.manifest(&image.digest).map_err(Error::from)?;
    let open = |it: &naru_image::oci::Descriptor| File::open(engine.images.blob_path(&it.digest));
    Ok(manifest.layers.iter().map(open).collect::<io::Result<_>>().map_err(Error::from)?)
}

/// Sends what is written as one file.
async fn bytes(
    session: &Session,
    number: usize,
    write: impl FnOnce(io::BufWriter<ToChannel>) -> crate::error::Result<()> + Send + 'static,
) -> Result<()> {
    let stream = session.result(number)?;
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    let written = tokio::task::spawn_blocking(move || {
        write(io::BufWriter::with_capacity(256 << 10, ToChannel(sender)))
    });
    let sent = files::send_bytes(stream, receiver).await;
    written.await.map_err(|it| Status::failed(it.to_string()))??;
    sent
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn an_output_is_understood_or_refused() {
        let exporter = |kind: &str, attrs: &[(&str, &str)]| Exporter {
            kind: kind.into(),
            attrs: attrs
                .iter()
                .map(|(key, it)| ((*key).into(), (*it).into()))
                .collect::<BTreeMap<String, String>>(),
        };
        let output = one(&exporter("moby", &[("name", "a:1,b:2"), ("push", "true")])).unwrap();
        assert_eq!((output.kind, output.push), (Kind::Store, true));
        assert_eq!(output.names, ["a:1", "b:2"]);
        for (kind, attrs, said) in [
            ("nix", &[][..], "type=nix"),
            ("image", &[("compression", "zstd")], "compression=zstd"),
            ("oci", &[("tar", "false")], "tar=false"),
        ] {
            assert!(one(&exporter(kind, attrs)).unwrap_err().message.contains(said));
        }
    }
}
