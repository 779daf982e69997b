pub fn run(_: &[String]) -> std::process::ExitCode { std::process::ExitCode::FAILURE }
