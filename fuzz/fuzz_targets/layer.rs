//! Any bytes as a layer's archive: nothing is touched outside of its directory. Needs root.
#![no_main]

use libfuzzer_sys::fuzz_target;
use naru_image_tests::hostile::Yard;
use std::sync::LazyLock;

static PLACE: LazyLock<Yard> = LazyLock::new(Yard::new);

fuzz_target!(|data: &[u8]| PLACE.layer(data));
