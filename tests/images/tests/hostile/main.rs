//! Thousands of spoilt Dockerfiles, layers, manifests and `Range` headers, the same ones in each run: `NARU_CASES`
//! makes more of them. What must hold is in `hostile.rs`, which the fuzz targets use, too.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

use naru_image_tests::Numbers;
use naru_image_tests::hostile::{Shelf, Yard, dockerfile, range};
use serde_json::json;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// One to four changes: a byte, a piece of this or of another seed, a piece doubled, cut out or cut off.
fn spoilt(seeds: &[Vec<u8>], words: &[&[u8]], numbers: &mut Numbers) -> Vec<u8> {
    let mut out = seeds[numbers.below(seeds.len())].clone();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(out.len() + 1);
        let length = numbers.below(24).min(out.len() - at);
        match numbers.below(7) {
            0 if at < out.len() => out[at] = numbers.next() as u8,
            1 if at < out.len() => out[at] ^= 1 << numbers.below(8),
            2 => drop(out.drain(at..at + length)),
            3 => {
                let piece = out[at..at + length].to_vec();
                out.splice(at..at, piece);
            }
            4 => {
                let other = &seeds[numbers.below(seeds.len())];
                let from = numbers.below(other.len());
                let end = (from + numbers.below(64)).min(other.len());
                out.splice(at..at + length, other[from..end].iter().copied());
            }
            5 => {
                let word = words[numbers.below(words.len())];
                out.splice(at..at + length, word.iter().copied());
            }
            _ => out.truncate(at),
        }
    }
    out
}

fn cases(own: u64) -> u64 {
    std::env::var("NARU_CASES").ok().and_then(|it| it.parse().ok()).unwrap_or(own)
}

/// A failure says which case it was, so that it can be looked at alone.
#[track_caller]
fn hold(case: u64, data: &[u8], check: impl FnOnce(&[u8])) {
    if catch_unwind(AssertUnwindSafe(|| check(data))).is_err() {
        panic!("case {case}: {}", data.escape_ascii());
    }
}

#[test]
fn spoilt_dockerfiles() {
    let seeds: Vec<Vec<u8>> = [
        "# syntax=docker/dockerfile:1\n# escape=`\nFROM scratch AS a\nCOPY --chmod=755 --from=b x `\n  y z/\n",
        "ARG V=1\nFROM --platform=$BUILDPLATFORM img:${V:-2} AS build\nARG TARGETARCH\nRUN --mount=type=cache,target=/c,sharing=locked <<EOF\necho hi\nEOF\n",
        "FROM a\nENV A=1 B=\"x y\" C='z'\nLABEL a.b=\"c\"\nHEALTHCHECK --interval=5s --retries=3 CMD [\"/x\", \"-h\"]\nONBUILD COPY . /\n",
        "FROM a\nCOPY <<\"ONE\" <<-TWO /x/\n$A\nONE\n\tb\nTWO\nADD --checksum=sha256:00 https://h/x /y\nSHELL [\"/bin/sh\", \"-c\"]\n",
        "FROM a\nRUN --network=none --mount=type=secret,id=s,env=S \\\n  # comment\n  echo ${A#x} ${B//y/z} \\\\\n\nUSER 1:2\nEXPOSE 80-82/udp\nVOLUME [\"/d\"]\nSTOPSIGNAL 9\nWORKDIR /${A}\n",
        "!a/**/b\n# x\n[a-z]?*\n\\#y\n",
    ]
    .map(|it| it.as_bytes().to_vec())
    .to_vec();
    let words: &[&[u8]] = &[
        b"FROM ",
        b"\\\n",
        b"<<EOF",
        b"\nEOF\n",
        b"--",
        b"${",
        b"}",
        b"\"",
        b"'",
        b"[",
        b"]",
        b"\r\n",
        b"\0",
        b"# escape=",
        b"\xff\xfe",
        "\u{feff}".as_bytes(),
        b"ONBUILD ",
        b"ARG ",
        b"--mount=type=",
        b"\n\n",
        b":-",
        b"%",
        b"\t",
    ];
    let mut numbers = Numbers(1);
    for case in 0..cases(6000) {
        hold(case, &spoilt(&seeds, words, &mut numbers), dockerfile);
    }
}

/// Headers of 512 bytes carry a sum over themselves; without it the rest of a spoilt one would never be looked at.
fn summed(mut archive: Vec<u8>) -> Vec<u8> {
    for header in archive.chunks_exact_mut(512) {
        if &header[257..262] == b"ustar" {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|it| u32::from(*it)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    archive
}

fn archives() -> Vec<Vec<u8>> {
    use tar::EntryType as T;
    let entry = |builder: &mut tar::Builder<Vec<u8>>, kind: T, name: &str, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        // As somebody would write it who does not use a library that refuses `..`.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        if matches!(kind, T::Char | T::Block) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        builder.append(&header, content).unwrap();
    };
    let mut all = Vec::new();
    for rows in [
        &[(T::Directory, "d/", "", &b""[..]), (T::Regular, "d/f", "", b"hello"), (T::Link, "h", "d/f", b"")]
            [..],
        &[
            (T::Symlink, "s", "../outside", b""),
            (T::Regular, "s/f", "", b"x"),
            (T::Link, "l", "s/secret", b""),
        ],
        &[
            (T::Regular, "way-out/f", "", b"x"),
            (T::Link, "l", "way-out/secret", b""),
            (T::Regular, "../f", "", b"x"),
        ],
        &[
            (T::Regular, ".wh.d", "", b""),
            (T::Regular, "d/.wh..wh..opq", "", b""),
            (T::Regular, ".wh...", "", b""),
        ],
        &[(T::Char, "dev/null", "", b""), (T::Fifo, "p", "", b""), (T::Block, "b", "", b"")],
        &[
            (T::XHeader, "x", "", b"19 path=../outside\n"),
            (T::Regular, "f", "", b"x"),
            (T::GNULongName, "n", "", b"a/../../b\0"),
            (T::Regular, "g", "", b"y"),
        ],
        &[
            (T::XHeader, "x", "", b"13 size=9999\n30 SCHILY.xattr.user.a=1234567\n"),
            (T::Regular, "f", "", b"x"),
            (T::GNUSparse, "z", "", b"x"),
        ],
    ] {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, link, content) in rows {
            entry(&mut builder, *kind, name, link, content);
        }
        all.push(builder.into_inner().unwrap());
    }
    all
}

#[test]
fn spoilt_layers() {
    let seeds = archives();
    let words: &[&[u8]] = &[
        b"../",
        b"/",
        b"..",
        b"\0",
        b".wh.",
        b".wh..wh..opq",
        b"way-out/",
        b"outside/secret",
        b"7777777",
        b"\x80\xff\xff\xff",
        b"path=",
        b"linkpath=../outside\n",
        b"size=",
        b"ustar  \0",
        b"\x1f\x8b\x08",
        b"\x28\xb5\x2f\xfd",
        b"0",
        b"1",
        b"2",
        b"5",
        b"x",
        b"g",
        b"L",
        b"K",
    ];
    let yard = Yard::new();
    for (case, it) in seeds.iter().enumerate() {
        hold(case as u64, it, |it| yard.layer(it));
    }
    let mut numbers = Numbers(2);
    for case in 0..cases(3000) {
        let mut data = spoilt(&seeds, words, &mut numbers);
        if numbers.below(4) > 0 {
            data = summed(data);
        }
        hold(case, &data, |it| yard.layer(it));
    }
}

#[test]
fn spoilt_manifests() {
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let blob =
        json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": 0});
    let seeds: Vec<Vec<u8>> = [
        json!({"schemaVersion": 2, "config": blob, "layers": [blob, blob], "annotations": {"naru.dev/base": "host"}}),
        json!({"schemaVersion": 2, "manifests": [{"mediaType": "a", "digest": digest, "size": 1,
            "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}]}),
        json!({"schemaVersion": 2, "config": blob, "layers": [{"mediaType": "application/vnd.dsse.envelope.v1+json",
            "digest": digest, "size": 2}], "subject": blob, "artifactType": "x"}),
        json!({"architecture": "amd64", "os": "linux", "config": {"Env": ["A=1"], "Cmd": null, "Volumes": null},
            "rootfs": {"type": "layers", "diff_ids": [digest]}, "history": [{"empty_layer": true}]}),
        json!({"payloadType": "application/vnd.in-toto+json", "payload": "e30=", "signatures": [{"sig": "c2ln"}]}),
    ]
    .iter()
    .map(|it| it.to_string().into_bytes())
    .collect();
    let words: &[&[u8]] = &[
        b"null",
        b"{}",
        b"[]",
        b"-1",
        b"1e99",
        b"99999999999999999999",
        b"\"\"",
        b"true",
        b"\"subject\":",
        b"\"manifests\":[",
        b"sha256:",
        b"sha512:",
        b"../",
        b"\\u0000",
        b"\xff",
        b"[[[[[[[[",
        b",",
        b":",
        b"\"layers\":",
        b"\"config\":",
    ];
    let shelf = Shelf::new();
    let mut numbers = Numbers(3);
    for case in 0..cases(3000) {
        hold(case, &spoilt(&seeds, words, &mut numbers), |it| shelf.manifest(it));
    }
}

#[test]
fn spoilt_ranges() {
    let texts =
        ["bytes=0-", "bytes=-5", "bytes=2-4", "bytes=0-0,2-3", "bytes=18446744073709551615-", "items=1-2"];
    let seeds: Vec<Vec<u8>> =
        texts.iter().map(|it| [&[9, 0, 0, 0, 0, 0, 0, 0], it.as_bytes()].concat()).collect();
    let words: &[&[u8]] =
        &[b"-", b"=", b",", b"18446744073709551615", b"18446744073709551616", b"+1", b" ", b"bytes=", b"0"];
    let mut numbers = Numbers(4);
    for case in 0..cases(20_000) {
        hold(case, &spoilt(&seeds, words, &mut numbers), range);
    }
}
