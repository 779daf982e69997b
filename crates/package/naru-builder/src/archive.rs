//! Archives that `ADD` unpacks: tar, plain or compressed with gzip, bzip2, xz or zstd, told by their content.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// As a layer; more than that is a bomb.
const BYTES_MAX: u64 = 64 << 30;
/// What an xz stream may ask for; the largest preset needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 128 << 10;

/// The plain content of a file, whatever it is compressed with.
pub fn decompress(mut file: File) -> io::Result<Box<dyn Read>> {
    use std::io::Seek;
    let mut head = Vec::new();
    (&mut file).take(6).read_to_end(&mut head)?;
    file.rewind()?;
    let buffered = io::BufReader::with_capacity(128 * 1024, file);
    if head.starts_with(b"BZh") {
        return Ok(Box::new(bounded(bzip2::bufread::MultiBzDecoder::new(buffered))));
    }
    if head.starts_with(b"\xfd7zXZ\0") {
        let reader = lzma_rust2::XzReader::new_mem_limit(buffered, true, XZ_MEMORY_KIB);
        return Ok(Box::new(bounded(reader)));
    }
    naru_image::decompress(buffered)
}

/// More than any archive holds is an error, not an end.
fn bounded(reader: impl Read) -> impl Read {
    struct Bounded<R>(R, u64);
    impl<R: Read> Read for Bounded<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.0.read(buffer)?;
            self.1 += n as u64;
            match self.1 > BYTES_MAX {
                true => Err(io::Error::other("more than 64 GiB unpacked")),
                false => Ok(n),
            }
        }
    }
    Bounded(reader, 0)
}

/// By content, as Docker: an `.tar.gz` that is none is copied.
pub fn is_archive(path: &Path) -> io::Result<bool> {
    let mut first = Vec::new();
    let Ok(plain) = decompress(File::open(path)?) else { return Ok(false) };
    if plain.take(512).read_to_end(&mut first).is_err() {
        return Ok(false);
    }
    Ok(first.len() == 512 && &first[257..262] == b"ustar")
}
