//! Any header as a `Range` of any blob.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| naru_image_tests::hostile::range(data));
