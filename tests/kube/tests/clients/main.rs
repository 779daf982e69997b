//! Stock clients against one daemon: kubectl and helm at two versions, and what people do with them.

mod helm;
mod kubectl;
mod operator;
mod python;
mod rights;
mod simulated;

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use naru_kube_tests::Case;
use naru_loop_tests::harness::{text, tool};

fn main() -> std::process::ExitCode {
    naru_kube_tests::run_own(
        [kubectl::all(), helm::all(), operator::all(), python::all(), rights::all(), simulated::all()]
            .into_iter()
            .flatten()
            .collect(),
    )
}

/// A stock program with the daemon's kubeconfig, in the scenario's namespace.
fn command(it: &Case, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(tool(program));
    command
        .args(["--namespace", &it.namespace])
        .args(args)
        .env("KUBECONFIG", &it.cluster.kubeconfig)
        .env("HOME", Path::new(&it.cluster.kubeconfig).with_file_name(format!("home-{}", it.namespace)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn try_run(it: &Case, program: &str, args: &[&str], input: &str) -> Output {
    let mut child = command(it, program, args).spawn().expect("the program is installed");
    let mut stdin = child.stdin.take().expect("it is piped");
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

/// What the program said; fails if the program does.
fn run(it: &Case, program: &str, args: &[&str]) -> String {
    run_with(it, program, args, "")
}

fn run_with(it: &Case, program: &str, args: &[&str], input: &str) -> String {
    let output = try_run(it, program, args, input);
    assert!(output.status.success(), "{program} {args:?}: {}", text(&output));
    text(&output)
}

/// A program that goes on until it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
