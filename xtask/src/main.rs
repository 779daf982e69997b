//! Work on the project itself: `cargo xtask check` looks at the walls of the house and at the links of its
//! docs, `cargo xtask bench` measures against peers.

mod bench;
mod links;
mod walls;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let problems = match args.first().map(String::as_str) {
        Some("check") => {
            let mut problems = walls::check();
            problems.extend(links::check());
            problems
        }
        Some("bench") => return bench::run(&args[1..]),
        _ => {
            eprintln!("usage: cargo xtask check | cargo xtask bench [NAME...]");
            return ExitCode::from(2);
        }
    };
    for it in &problems {
        eprintln!("error: {it}");
    }
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The repository's root.
pub fn root() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the root").to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_walls_stand() {
        assert_eq!(super::walls::check(), Vec::<String>::new());
    }

    #[test]
    fn no_link_in_the_docs_is_dead() {
        assert_eq!(super::links::check(), Vec::<String>::new());
    }
}
