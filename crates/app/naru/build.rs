//! The program is linked to a fixed address. At another one, two megabytes of addresses in it would be written
//! anew each time it starts: a millisecond, and memory that no two processes share, for each shim of each pod.
//! Libraries, stacks and heaps are still placed at random.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|it| it == value);
    if is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
