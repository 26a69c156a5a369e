//! `sociblk serve-index`.

use clap::Args;

use crate::builder::{self, BuilderOptions, JobState, Status};
use crate::cli::args::GlobalArgs;
use crate::cli::commands::paths;
use crate::cli::output;
use crate::config::Config;

/// Jobs that `--status` shows.
const SHOWN: u64 = 50;

/// Arguments of `serve-index`.
#[derive(Args, Debug)]
pub struct ServeIndexArgs {
    /// Where notifications come in; default: builder.listen, 127.0.0.1:8789.
    #[arg(long, value_name = "ADDRESS:PORT|unix:PATH")]
    pub listen: Option<String>,
    /// Images that are worked on at the same time; default: builder.jobs, 2.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: Option<u16>,
    /// Images whose layers are smaller than this in all get no index; default: builder.min_image_size, 0.
    #[arg(long, value_name = "BYTES")]
    pub min_image_size: Option<u64>,
    /// Which platforms are indexed; may be repeated. Default: builder.platforms, all.
    #[arg(long, short, value_name = "OS/ARCH")]
    pub platform: Vec<String>,
    /// Show the queue under this root, and run nothing.
    #[arg(long, conflicts_with_all = ["listen", "jobs", "min_image_size", "platform"])]
    pub status: bool,
    /// With --status: only jobs in this state.
    #[arg(long, requires = "status", value_name = "STATE", value_parser = ["queued", "running", "done", "skipped", "failed"])]
    pub state: Option<String>,
    /// With --status: print JSON.
    #[arg(long, requires = "status")]
    pub json: bool,
}

/// Runs the command.
pub fn run(global: &GlobalArgs, args: &ServeIndexArgs) -> anyhow::Result<()> {
    let paths = paths(global)?;
    if args.status {
        let status = builder::status(&paths, args.state.as_deref().and_then(JobState::of), SHOWN)?;
        if args.json {
            return output::json(&status);
        }
        show(&status);
        return Ok(());
    }
    let mut config = Config::load(global.config.as_deref())?;
    let settings = &mut config.builder;
    settings.listen = args.listen.clone().unwrap_or_else(|| settings.listen.clone());
    settings.jobs = args.jobs.map_or(settings.jobs, usize::from);
    settings.min_image_size.0 = args.min_image_size.unwrap_or(settings.min_image_size.0);
    if !args.platform.is_empty() {
        settings.platforms.clone_from(&args.platform);
    }
    let options = BuilderOptions { access: global.registry.access()?, login: global.registry.login()? };
    let mut ready = |address: &str| output::line(&format!("listening on {address}"));
    Ok(builder::run(&paths, config, options, &mut ready)?)
}

fn show(status: &Status) {
    let counts: Vec<String> =
        JobState::ALL.iter().map(|state| format!("{} {}", status.counts.of(*state), state.word())).collect();
    output::line(&counts.join(", "));
    if status.jobs.is_empty() {
        return;
    }
    let rows: Vec<Vec<String>> = status
        .jobs
        .iter()
        .map(|job| {
            let outcome = if job.reason.is_empty() { &job.result } else { &job.reason };
            vec![job.state.clone(), job.attempts.to_string(), job.image.clone(), job.tag.clone(), outcome.clone()]
        })
        .collect();
    output::table(&["STATE", "TRIES", "IMAGE", "TAG", "OUTCOME"], &rows);
}
