//! `kv`: a replicated key-value database. Everything is said by `kv --help`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
