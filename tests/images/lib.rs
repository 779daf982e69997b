//! What the tests of images and containers share: the daemon of `naru_loop_tests` and small images made of
//! Debian's static busybox, because no public registry is asked.

pub use naru_loop_tests::*;
