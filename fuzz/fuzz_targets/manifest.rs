//! Any bytes as a manifest, an index, a configuration, a referrer or a signature.
#![no_main]

use libfuzzer_sys::fuzz_target;
use naru_image_tests::hostile::Shelf;
use std::sync::LazyLock;

static PLACE: LazyLock<Shelf> = LazyLock::new(Shelf::new);

fuzz_target!(|data: &[u8]| PLACE.manifest(data));
