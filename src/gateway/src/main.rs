//! The `vendetta` executable.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use vendetta::app::{ServeOptions, serve};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
enum Command {
    /// Run a gateway.
    Serve {
        #[arg(long)]
        config: Option<PathBuf>,
        #[arg(long)]
        listen: Option<SocketAddr>,
        #[arg(long)]
        state_dir: Option<PathBuf>,
        #[arg(long)]
        admin_key: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let Command::Serve {
        config,
        listen,
        state_dir,
        admin_key,
    } = Command::parse();
    match serve(&ServeOptions {
        config,
        listen,
        state_dir,
        admin_key,
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vendetta: {error:#}");
            ExitCode::from(70)
        }
    }
}
