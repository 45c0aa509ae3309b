//! See `ortolan --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match ortolan::cli::run() {
        Ok(code) => code,
        Err(error) => {
            use std::io::Write;
            // `{:#}` joins the causes into one sentence. Nobody is left to tell if standard error is closed.
            let _ = writeln!(std::io::stderr(), "ortolan: {error:#}");
            ExitCode::FAILURE
        }
    }
}
