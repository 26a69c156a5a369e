//! `sociblk record`: what a workload reads first.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::args::GlobalArgs;
use super::commands::{absolute, mount_point, paths, text_only};
use super::output;
use crate::node::client::ask;
use crate::node::protocol::{Outcome, RecordAction, RecordOrder, RecordReport, Request};

/// Commands on recordings. Each mount is recorded from its beginning on; `save` alone is enough for a workload that was
/// started right after its mount.
#[derive(Subcommand, Debug)]
pub enum RecordCommand {
    /// Begin anew: what is read from now on counts.
    Start(RecordArgs),
    /// Keep what was read so far as a load order, and go on.
    Save(SaveArgs),
    /// Keep what was read so far as a load order, and forget its label.
    Stop(SaveArgs),
    /// Begin anew, run a command to its end, and keep what was read meanwhile.
    Run {
        /// Of what, and under which label.
        #[command(flatten)]
        save: SaveArgs,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

/// Whose reads.
#[derive(Args, Debug)]
pub struct RecordArgs {
    /// A mount point, or an image that is mounted or shown to containerd: its reference, or its manifest's digest.
    #[arg(value_name = "DIR|IMAGE")]
    pub target: String,
    /// Label of the load order: the name of the workload; default: that of `start`, else `default`.
    #[arg(long, short, visible_alias = "label")]
    pub name: Option<String>,
    /// The command that is recorded, as a JSON list of texts; default: the image's own.
    #[arg(long, value_name = "JSON")]
    pub entrypoint: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What to keep, and where.
#[derive(Args, Debug)]
pub struct SaveArgs {
    /// Whose reads.
    #[command(flatten)]
    pub of: RecordArgs,
    /// Write the document here, too.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Runs one of the commands; the status is that of a command that was run.
pub fn run(global: &GlobalArgs, command: &RecordCommand) -> anyhow::Result<ExitCode> {
    match command {
        RecordCommand::Start(of) => {
            let report = asked(global, of, RecordAction::Start)?;
            if of.json {
                output::json(&report)?;
            } else {
                output::line(&format!("recording {} as {:?}", report.reference, report.label));
            }
        }
        RecordCommand::Save(args) => save(global, args, RecordAction::Save)?,
        RecordCommand::Stop(args) => save(global, args, RecordAction::Stop)?,
        RecordCommand::Run { save: args, command } => {
            let Some((program, arguments)) = command.split_first() else { bail!("no command") };
            asked(global, &args.of, RecordAction::Start)?;
            let status = Command::new(program).args(arguments).status().with_context(|| program.clone())?;
            save(global, args, RecordAction::Stop)?;
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Ok(ExitCode::from(code));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn save(global: &GlobalArgs, args: &SaveArgs, action: RecordAction) -> anyhow::Result<()> {
    let mut report = asked(global, &args.of, action)?;
    let document = report.document.take().context("the daemon sent no load order")?;
    if let Some(file) = &args.output {
        std::fs::write(file, serde_json::to_vec(&document)?).with_context(|| file.display().to_string())?;
    }
    if args.of.json {
        return output::json(&report);
    }
    let RecordReport { reference, label, spans, layers, bytes, duration_ms, .. } = report;
    output::line(&format!(
        "{reference}: {spans} spans of {layers} layers ({}) in {duration_ms} ms, kept as {label:?}",
        output::size(bytes)
    ));
    Ok(())
}

fn asked(global: &GlobalArgs, args: &RecordArgs, action: RecordAction) -> anyhow::Result<RecordReport> {
    let path = Path::new(&args.target);
    let target = match path.is_absolute() || path.is_dir() {
        true => {
            let dir = mount_point(&absolute(path)?);
            text_only(&dir)?;
            dir.display().to_string()
        }
        false => args.target.clone(),
    };
    let entrypoint = args.entrypoint.as_deref().map(serde_json::from_str).transpose();
    let entrypoint = entrypoint.context("--entrypoint wants a JSON list of texts, as [\"/bin/app\", \"serve\"]")?;
    let order = RecordOrder { action, target, label: args.name.clone(), entrypoint };
    match ask(&paths(global)?, Request::Record(order), &mut |_| {})? {
        Outcome::Recorded(report) => Ok(report),
        _ => bail!("the daemon answered something else than was asked"),
    }
}
