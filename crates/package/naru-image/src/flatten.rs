//! All layers of an image as one archive: what a container of it would see, without unpacking anything.

use crate::unpack::decompress;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Writes one plain archive of the layers whose archives (compressed or not) these are, bottom first.
///
/// The topmost layer is written first: what a lower layer has under a name that was seen or hidden above is
/// left out. So nothing is kept in memory but names.
pub fn flatten(layers: &[File], out: impl Write) -> io::Result<()> {
    let mut builder = tar::Builder::new(out);
    let mut seen: HashSet<PathBuf> = HashSet::new();
    // Whole trees that upper layers hide: removed, replaced by a file, or made opaque.
    let mut hidden: HashSet<PathBuf> = HashSet::new();
    for layer in layers.iter().rev() {
        let mut hidden_here: Vec<PathBuf> = Vec::new();
        let mut archive = tar::Archive::new(decompress(layer)?);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path: PathBuf = entry.path()?.components().filter(|it| is_name(it)).collect();
            let Some(name) = path.file_name() else { continue };
            if let Some(rest) = name.as_bytes().strip_prefix(b".wh.") {
                match rest {
                    b".wh..opq" => hidden_here.push(path.parent().unwrap_or(Path::new("")).to_owned()),
                    _ => hidden_here.push(path.with_file_name(std::ffi::OsStr::from_bytes(rest))),
                }
                continue;
            }
            let is_hidden = path.ancestors().any(|it| hidden.contains(it));
            if is_hidden || !seen.insert(path.clone()) {
                continue;
            }
            let kind = entry.header().entry_type();
            if !kind.is_dir() {
                hidden_here.push(path.clone()); // a directory of that name below is no more
            }
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(entry.header().mode()?);
            header.set_uid(entry.header().uid()?);
            header.set_gid(entry.header().gid()?);
            header.set_mtime(entry.header().mtime()?);
            header.set_size(0);
            if let Some(extensions) = entry.pax_extensions()? {
                let kept: Vec<(String, Vec<u8>)> = extensions
                    .filter_map(Result::ok)
                    .filter_map(|it| Some((it.key().ok()?.to_owned(), it.value_bytes().to_vec())))
                    .filter(|(key, _)| key.starts_with("SCHILY.xattr."))
                    .collect();
                let kept = kept.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
                builder.append_pax_extensions(kept)?;
            }
            match kind {
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                    if target.len() < 100 && header.set_link_name_literal(&target).is_ok() {
                        builder.append_data(&mut header, &path, io::empty())?;
                    } else {
                        builder.append_link(
                            &mut header,
                            &path,
                            Path::new(std::ffi::OsStr::from_bytes(&target)),
                        )?;
                    }
                }
                tar::EntryType::Char | tar::EntryType::Block => {
                    header.set_device_major(entry.header().device_major()?.unwrap_or(0))?;
                    header.set_device_minor(entry.header().device_minor()?.unwrap_or(0))?;
                    builder.append_data(&mut header, &path, io::empty())?;
                }
                tar::EntryType::Directory | tar::EntryType::Fifo => {
                    builder.append_data(&mut header, &path, io::empty())?;
                }
                _ => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_size(entry.size());
                    builder.append_data(&mut header, &path, &mut entry)?;
                }
            }
        }
        hidden.extend(hidden_here);
    }
    builder.into_inner()?.flush()
}

fn is_name(component: &std::path::Component<'_>) -> bool {
    matches!(component, std::path::Component::Normal(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::{Read, Seek};

    fn layer(entries: &[(&str, &str)]) -> File {
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        for (name, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(content.len() as u64);
            if name.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
            }
            builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        let mut file = builder.into_inner().unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn upper_layers_hide_what_lies_below() {
        let layers = [
            layer(&[
                ("a/", ""),
                ("a/one", "1"),
                ("a/two", "2"),
                ("b/", ""),
                ("b/x", "x"),
                ("c/", ""),
                ("c/y", "y"),
            ]),
            layer(&[
                ("a/", ""),
                ("a/one", "new"),
                ("a/.wh.two", ""),
                ("b/", ""),
                ("b/.wh..wh..opq", ""),
                ("b/z", "z"),
            ]),
            layer(&[("c", "a file now")]),
        ];
        let mut bytes = Vec::new();
        flatten(&layers, &mut bytes).unwrap();
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let name = entry.path().unwrap().display().to_string();
            assert!(found.insert(name.trim_end_matches('/').to_owned(), text).is_none(), "{name} twice");
        }
        let want = [("a", ""), ("a/one", "new"), ("b", ""), ("b/z", "z"), ("c", "a file now")];
        assert_eq!(found, want.map(|(a, b)| (a.to_owned(), b.to_owned())).into());
    }
}
