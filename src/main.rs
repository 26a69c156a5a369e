//! The `sociblk` binary: see [`sociblk::cli`].

fn main() -> std::process::ExitCode {
    sociblk::cli::run()
}
