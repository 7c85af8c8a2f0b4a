//! The `vendetta` executable.

use std::process::ExitCode;

fn main() -> ExitCode {
    vendetta::cli::main()
}
