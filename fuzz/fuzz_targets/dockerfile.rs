//! Any text as a Dockerfile and as an ignore file.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| naru_image_tests::hostile::dockerfile(data));
