//! What can be said on the command line. Help texts, man page and completions are generated from these structs.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use super::config::ConfigCommand;
use super::explain::ExplainArgs;
use super::record::RecordCommand;
use super::registry::RegistryArgs;
use super::rpull::RpullArgs;
use super::serve::ServeArgs;
use super::soci::convert::ConvertArgs;
use super::soci::create::CreateArgs;
use super::soci::index::IndexCommand;
use super::soci::prefetch::PrefetchCommand;
use super::soci::push::PushArgs;
use super::soci::serve_index::ServeIndexArgs;
use super::soci::ztoc::ZtocListArgs;

/// Start containers from unmodified OCI images before their bytes have arrived.
///
/// sociblk reads a SOCI index, shows each layer as a read-only block device that holds an EROFS image synthesized on
/// the fly, and fetches and inflates only what is read. A first try: `sociblk mount IMAGE DIR`, then look into DIR.
#[derive(Parser, Debug)]
#[command(name = "sociblk", version, max_term_width = 110, after_help = AFTER_HELP)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  sociblk create registry.example/app:1 --push   make the image's SOCI index and put it beside the image
  sociblk mount registry.example/app:1 /mnt/app  show the image's root file system at once
  sociblk ls                                     see what is mounted and how much of it was fetched
  sociblk umount /mnt/app                        undo the mount
  sociblk doctor                                 find out what this machine can do, and what was left over

Exit status: 0 success, 1 error (one line on stderr says what and what to do), 2 wrong usage.";

/// Span sizes that make sense: a checkpoint costs 32 KiB, and a span is the least that is fetched.
pub(super) const SPAN_SIZES: std::ops::RangeInclusive<u64> = 1 << 10..=1 << 40;

/// Options of every command.
#[derive(Args, Debug, Clone)]
pub struct GlobalArgs {
    /// Where state lives: cache, local index store, control socket.
    #[arg(long, global = true, env = "SOCIBLK_ROOT", default_value = "/var/lib/sociblk", value_name = "DIR")]
    pub root: PathBuf,
    /// Settings file; absent is fine only at the default place.
    #[arg(long, global = true, env = "SOCIBLK_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Say more: -v for what is done, -vv for every request.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Log lines as JSON.
    #[arg(long, global = true)]
    pub log_json: bool,
    /// How registries are talked to. Last: its heading would hold for what follows.
    #[command(flatten)]
    pub registry: RegistryArgs,
}

impl GlobalArgs {
    /// The log filter that `-v` asks for.
    #[must_use]
    fn log_level(&self) -> &'static str {
        match self.verbose {
            0 => "warn",
            1 => "sociblk=info,warn",
            _ => "sociblk=debug,info",
        }
    }
}

impl Cli {
    /// The log filter that `-v` asks for. A service that nobody watches says what it did without being asked.
    #[must_use]
    pub fn log_level(&self) -> &str {
        match (&self.command, self.global.verbose) {
            (Command::Serve(args), 0) => &args.log_level,
            (Command::ServeIndex(args), 0) if !args.status => "sociblk::builder=info,warn",
            _ => self.global.log_level(),
        }
    }
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Mount an image lazily: its whole root file system, fetching only what is read.
    Mount(MountArgs),
    /// Undo a mount and free its devices.
    Umount {
        /// Where the image is mounted.
        dir: PathBuf,
        /// Detach even when files are open; devices go when the last user is gone.
        #[arg(long)]
        lazy: bool,
    },
    /// List mounted layers: digest, device, frontend, size, fetched, proven, readers waiting.
    Ls {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Tell of which layers a container, an image or a mount is made: lazy or not, why, and what its readers wait for.
    Explain(ExplainArgs),
    /// Print counters of the daemon and of each layer.
    Stats {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check what this machine can do and what was left over, and say what to do about each finding.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Remove what was left over (mounts, devices) when no daemon runs.
        #[arg(long)]
        clean: bool,
    },
    /// Build the zTOC of every layer of an image and a SOCI index (v1) of them in the local store.
    Create(CreateArgs),
    /// Make an image with its SOCI index (v2) inside.
    Convert(ConvertArgs),
    /// Push an image's SOCI index (v1) from the local store to the image's registry.
    Push(PushArgs),
    /// Run the snapshotter: containerd runs containers from images whose bytes have not arrived.
    Serve(ServeArgs),
    /// Pull an image into containerd, its layers through the snapshotter.
    Rpull(RpullArgs),
    /// Print and check settings, sociblk's and SOCI's.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Run the index builder: index every image that registries tell of.
    ServeIndex(ServeIndexArgs),
    /// List, show and remove SOCI indexes of the local store.
    #[command(subcommand)]
    Index(IndexCommand),
    /// Build, list, inspect and use zTOCs, of layer files and of the local store.
    #[command(subcommand)]
    Ztoc(ZtocCommand),
    /// Record what a workload reads first, so that its next start fetches that first.
    #[command(subcommand)]
    Record(RecordCommand),
    /// Build, push, list and show load orders and SOCI's prefetch artifacts.
    #[command(subcommand)]
    Prefetch(PrefetchCommand),
    /// Make the local store's database anew from what is in the store.
    RebuildDb {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write a layer as an EROFS image file.
    Image(ImageArgs),
    /// Run or stop the daemon that owns the devices. Other commands start it when they need it.
    #[command(subcommand)]
    Daemon(DaemonCommand),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff), or write one page per command.
    Man {
        /// Write the pages into this directory instead of printing the main one.
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
    },
    /// Mount operations on stdin as JSON; used by the daemon.
    #[command(name = "__mount", hide = true)]
    MountHelper,
}

/// Which kernel path shows the layers.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontendArg {
    /// The first that works: ublk, then fuse-image.
    Auto,
    /// A ublk block device for each layer (Linux 6.0 and later with `ublk_drv`).
    Ublk,
    /// One read-only image file for each layer, served over FUSE.
    FuseImage,
    /// Every file by itself over FUSE, as SOCI serves them: for comparison. Slower; never chosen by auto.
    FuseFs,
}

/// Arguments of `mount`.
#[derive(Args, Debug)]
pub struct MountArgs {
    /// Registry reference (tag or digest), `oci:LAYOUT_DIR[:TAG]`, or `layer:LAYER_FILE`.
    pub image: String,
    /// An existing directory to mount on.
    pub dir: PathBuf,
    /// Kernel path.
    #[arg(long, value_enum, default_value_t = FrontendArg::Auto)]
    pub frontend: FrontendArg,
    /// Which image of a multi-platform index; default: this machine's.
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Make the mount writable: changes go to DIR (created if absent; its sibling `DIR.work` serves overlayfs).
    #[arg(long, value_name = "DIR")]
    pub upper: Option<PathBuf>,
    /// Keep the command in the foreground; Ctrl-C undoes the mount.
    #[arg(long)]
    pub foreground: bool,
    /// Fetch the rest in the background after the mount, and prove each layer's diffID.
    #[arg(long)]
    pub background: bool,
    /// Load order to follow: a label, a FILE, or `off`; default: as the settings say.
    #[arg(long, value_name = "LABEL|FILE|off")]
    pub load_order: Option<String>,
    /// Print JSON about the mount.
    #[arg(long)]
    pub json: bool,
}

/// Commands on zTOCs.
#[derive(Subcommand, Debug)]
pub enum ZtocCommand {
    /// Build the zTOC of a layer file (gzip or plain tar).
    Build {
        /// The layer blob.
        layer: PathBuf,
        /// Where to write the zTOC.
        #[arg(long, short)]
        output: PathBuf,
        /// Uncompressed bytes between two checkpoints.
        #[arg(long, default_value_t = 4 << 20, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(SPAN_SIZES))]
        span_size: u64,
        /// Build tool identifier to record.
        #[arg(long, value_name = "ID")]
        build_tool: Option<String>,
    },
    /// List the zTOCs of the local store.
    #[command(visible_alias = "list")]
    Ls(ZtocListArgs),
    /// Show what a zTOC says.
    Info {
        /// The zTOC file, or the digest of a zTOC in the local store (which is always shown as JSON).
        #[arg(value_name = "FILE|DIGEST")]
        ztoc: PathBuf,
        /// Print JSON, with every file and its spans.
        #[arg(long)]
        json: bool,
    },
    /// Extract one file of a layer by its zTOC, inflating only the spans that hold it.
    GetFile {
        /// The zTOC file, or the digest of a zTOC in the local store.
        #[arg(value_name = "FILE|DIGEST")]
        ztoc: PathBuf,
        /// The file's path in the layer.
        path: String,
        /// The layer blob; needed with a zTOC file, or when the local store does not have it.
        #[arg(long)]
        layer: Option<PathBuf>,
        /// Where to write it; default: standard output.
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
}

/// Arguments of `image`.
#[derive(Args, Debug)]
pub struct ImageArgs {
    /// The layer blob.
    pub layer: PathBuf,
    /// Its zTOC; built on the fly when not given.
    #[arg(long, value_name = "FILE")]
    pub ztoc: Option<PathBuf>,
    /// 4096: what the device shows. 512: metadata followed by the tar, byte for byte.
    #[arg(long, default_value = "4096", value_parser = ["4096", "512"], value_name = "BYTES")]
    pub block_size: String,
    /// Where to write the image.
    #[arg(long, short)]
    pub output: PathBuf,
}

/// Commands on the daemon.
#[derive(Subcommand, Debug)]
pub enum DaemonCommand {
    /// Run the daemon in the foreground (what systemd starts).
    Run {
        /// Kernel path for all mounts of this daemon.
        #[arg(long, value_enum, default_value_t = FrontendArg::Auto)]
        frontend: FrontendArg,
        /// Exit after this many seconds without a mount; 0: never.
        #[arg(long, default_value_t = 0, value_name = "SECONDS")]
        idle_exit: u64,
    },
    /// Undo all mounts and stop the daemon.
    Stop,
    /// Say whether a daemon runs for this root.
    Status,
}

/// The clap description of the whole command line, for completions and man pages.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn the_issue_s_command_lines_parse() {
        for line in [
            "sociblk ztoc build layer.tar.gz --output l.ztoc --span-size 1048576 --build-tool X",
            "sociblk ztoc info l.ztoc --json",
            "sociblk ztoc get-file l.ztoc etc/passwd --layer layer.tar.gz --output out",
            "sociblk index ls -q --ref app:1 -p linux/amd64 --platform linux/arm64/v8",
            "sociblk index list --json",
            "sociblk index rm sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 --json",
            "sociblk index remove --ref app:1",
            "sociblk index gc --unused-for 12h",
            "sociblk ztoc ls --image-ref app:1 -q",
            "sociblk ztoc info sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sociblk prefetch ls --json",
            "sociblk prefetch ls --orders",
            "sociblk prefetch build app:1 --name web",
            "sociblk prefetch push app:1 --from web.json --label web -p linux/amd64 --plain-http",
            "sociblk prefetch info web.json --json",
            "sociblk record start /mnt/app --name web",
            "sociblk record stop app:1 -o web.json --json",
            "sociblk record save web-1 --containerd-address unix:///run/c.sock --namespace k8s.io --json",
            "sociblk record run /mnt/app -n web -- chroot /mnt/app /bin/app --serve",
            "sociblk mount app:1 /mnt --load-order web",
            "sociblk rebuild-db",
            "sociblk image layer.tar.gz --ztoc l.ztoc --block-size 512 --output l.erofs",
            "sociblk mount localhost:5000/a:b /mnt --frontend fuse-image --platform linux/amd64 --foreground",
            "sociblk mount oci:dir:tag /mnt --upper /tmp/up --root /tmp/r",
            "sociblk umount /mnt",
            "sociblk create app:1 --span-size 1048576 --min-layer-size 0 -p linux/amd64 --platform linux/arm64 -f --json",
            "sociblk create oci-archive:a.tar:1 --all-platforms --optimizations xattr --prefetch-file /a --prefetch-file b",
            "sociblk create app:1 --prefetch-files-json list.json --push",
            "sociblk convert --standalone --format oci-dir in.tar out",
            "sociblk convert app:1 app:1-soci --all-platforms --min-layer-size 0",
            "sociblk create app:1 --containerd-address /run/c.sock -n k8s.io --all-platforms",
            "sociblk convert containerd:app:1 app:1-soci --namespace moby",
            "sociblk index verify app:1 --containerd-address /run/c.sock --parallel 2",
            "sociblk push app:1 --existing-index skip --max-concurrent-uploads 8 --plain-http -u me:secret -q",
            "sociblk serve --address unix:///run/x.sock --root /tmp/r --config /tmp/c.toml --log-level debug",
            "sociblk serve --address fd://",
            "sociblk explain reader --containerd-address unix:///run/c.sock -n k8s.io --json",
            "sociblk rpull localhost:5000/a:b --containerd-address /run/c.sock -n k8s.io --snapshotter s --plain-http",
            "sociblk config default",
            "sociblk config dump --insecure a:1 --address fd://",
            "sociblk config check /etc/soci-snapshotter-grpc/config.toml --json",
            "sociblk config convert /etc/soci-snapshotter-grpc/config.toml",
            "sociblk serve-index --listen unix:/run/x.sock --jobs 4 --min-image-size 1000000 -p linux/amd64",
            "sociblk serve-index --status --state failed --json",
            "sociblk ls --json",
            "sociblk stats --json",
            "sociblk doctor",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in [
            "sociblk record run /mnt/app",
            "sociblk image x --block-size 1024 --output y",
            "sociblk index rm",
            "sociblk index rm sha256:12",
            "sociblk index rm --ref app:1 sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sociblk index gc --unused-for soon",
            "sociblk serve --address tcp://x",
            "sociblk serve-index --jobs 0",
            "sociblk serve-index --state failed",
            "sociblk serve-index --status --jobs 2",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
