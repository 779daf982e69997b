//! What the tests of workflows share: the daemon of `naru_loop_tests`.

pub use naru_loop_tests::*;
