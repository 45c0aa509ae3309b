//! See `ortolan --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ortolan::cli::run()
}
