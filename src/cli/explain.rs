//! `sociblk explain`: what a container, an image or a mount is made of, and what its readers wait for.

use std::path::{Path, PathBuf};

use clap::Args;

use super::args::GlobalArgs;
use super::commands::paths;
use super::output;
use crate::node::explain::{self, ExplainOptions, Explained, ExplainedLayer};
use crate::node::protocol::{DEFAULT_NAMESPACE, DEFAULT_SOCKET, FollowedOrder, LayerAccount};
use crate::node::rpull;

/// Arguments of `explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// A mount point, an image (reference, or digest of its manifest), or a container of containerd's (its name, or how it
    /// begins).
    #[arg(value_name = "CONTAINER|IMAGE|MOUNT")]
    pub target: String,
    /// containerd's socket; asked only for containers.
    #[arg(long, env = "CONTAINERD_ADDRESS", value_name = "SOCKET", default_value = DEFAULT_SOCKET)]
    pub containerd_address: PathBuf,
    /// containerd's namespace.
    #[arg(long, short = 'n', env = "CONTAINERD_NAMESPACE", default_value = DEFAULT_NAMESPACE, value_name = "NAME")]
    pub namespace: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs `sociblk explain`.
pub fn run(global: &GlobalArgs, args: &ExplainArgs) -> anyhow::Result<()> {
    let options = options(&args.target, &args.containerd_address, &args.namespace)?;
    let explained = explain::run(&paths(global)?, &options)?;
    if args.json {
        return output::json(&explained);
    }
    output::line(&head(&explained));
    let rows: Vec<_> = explained.layers.iter().map(row).collect();
    output::table(&["LAYER", "FILES", "WHY", "DEVICE", "FETCHED", "SPANS", "WAITING"], &rows);
    explained.layers.iter().flat_map(about).for_each(|line| output::line(&line));
    Ok(())
}

/// What is asked about, and a containerd as people and their variables name it: by a path, or `unix://PATH`.
pub(super) fn options(target: &str, socket: &Path, namespace: &str) -> anyhow::Result<ExplainOptions> {
    let path = socket.to_str().and_then(|text| text.strip_prefix("unix://")).map(Path::new);
    let containerd = rpull::address(path.unwrap_or(socket), namespace)?;
    Ok(ExplainOptions { target: target.to_owned(), containerd })
}

fn head(explained: &Explained) -> String {
    let Explained { kind, name, image, snapshotter, layers } = explained;
    let image = image.as_ref().filter(|image| *image != name).map(|image| format!(" of {image}")).unwrap_or_default();
    let by = snapshotter.as_ref().map(|by| format!(", snapshotter {by}")).unwrap_or_default();
    format!("{kind} {name}{image}{by}: {} layers, the lowest first", layers.len())
}

fn short(layer: &ExplainedLayer) -> String {
    let digest = layer.digest.as_ref().map(crate::units::Digest::short);
    digest.unwrap_or_else(|| layer.snapshot.clone().unwrap_or_else(|| "?".to_owned()))
}

fn row(layer: &ExplainedLayer) -> Vec<String> {
    let why = layer.because.as_ref().map_or("?", |because| because.reason.word());
    let of = |tell: &dyn Fn(&LayerAccount) -> String| layer.served.as_ref().map_or("-".to_owned(), tell);
    vec![
        short(layer),
        layer.state.word().to_owned(),
        why.to_owned(),
        of(&|l| format!("{} ({})", l.status.device.display(), l.status.frontend)),
        of(&|l| format!("{} of {}", output::size(l.status.fetched_bytes), output::size(l.status.blob_bytes))),
        of(&|l| format!("{} of {}", l.status.present_spans, l.status.spans)),
        of(&|l| match l.status.waiting_readers {
            0 => "0".to_owned(),
            readers => format!("{readers}, up to {}", time(l.status.oldest_wait_ms)),
        }),
    ]
}

/// What does not fit into a row.
fn about(layer: &ExplainedLayer) -> Vec<String> {
    let mut lines = vec![String::new(), format!("{}:", layer.digest.map_or_else(|| short(layer), |d| d.to_string()))];
    match &layer.because {
        Some(because) => lines.push(format!("  {}: {}", because.reason.word(), because.detail)),
        None => lines.push("  unpacked by containerd; why, nobody here remembers".to_owned()),
    }
    if let Some(origin) = &layer.origin {
        let index = layer.index.map(|index| format!(", index {index}")).unwrap_or_default();
        let ztoc = layer.served.as_ref().map(|served| format!(", zTOC {}", served.ztoc)).unwrap_or_default();
        lines.push(format!("  zTOC by: {origin}{index}{ztoc}"));
    }
    let Some(served) = &layer.served else { return lines };
    lines.extend(served.status.load_order.as_ref().map(follows));
    if let Some(error) = &served.status.last_error {
        lines.push(format!("  last error: {error}"));
    }
    for read in &served.waiting {
        let what = place(read.device_offset, read.len_bytes, read.file.as_deref());
        lines.push(format!("  waits for {:<8} {:>9}  {what}", read.waits_for, time(read.waited_ms)));
    }
    if served.status.waits > 0 {
        let (waits, waited) = (served.status.waits, time(served.status.waited_ms));
        lines.push(format!("  {waits} reads had to wait, {waited} in all; the slowest:"));
    }
    for read in &served.slowest {
        let what = place(read.device_offset, read.len_bytes, read.file.as_deref());
        let failed = if read.failed { ", failed" } else { "" };
        lines.push(format!(
            "  {:>9}  {:<8} {what}, {} ago (queue {}, retry {}, network {}, inflate {} ms{failed})",
            time(read.took_ms),
            read.waited_for,
            time(read.ago_ms),
            read.queue_ms,
            read.retry_ms,
            read.network_ms,
            read.inflate_ms,
        ));
    }
    lines
}

/// Which load order a layer follows.
fn follows(order: &FollowedOrder) -> String {
    let FollowedOrder { label, from, digest, why, spans, bytes, pieces, slices, excerpt } = order;
    let what = match (label, from.as_str()) {
        (Some(label), "file") => format!("load order {label:?} of a file"),
        (Some(label), "kept") => format!("load order {label:?}, kept here"),
        (Some(label), _) => format!("load order {label:?}, from the registry"),
        (None, _) => "prefetch artifact".to_owned(),
    };
    let digest = digest.map(|digest| format!(" ({digest})")).unwrap_or_default();
    let lent = excerpt.map_or_else(String::new, |excerpt| format!("{slices} slices of its excerpt {excerpt}, and "));
    format!("  follows: {what}{digest}: {lent}{spans} spans ({}) in {pieces} pieces; {why}", output::size(*bytes))
}

fn place(offset: Option<u64>, len_bytes: u64, file: Option<&str>) -> String {
    let at = offset.map_or_else(|| "nowhere on the device".to_owned(), |at| format!("{len_bytes} bytes at {at}"));
    // A name comes from the image: it must not speak to the terminal.
    let file = file.map(|name| name.escape_debug().to_string());
    file.map_or(at.clone(), |name| format!("{at} in /{name}"))
}

fn time(ms: u64) -> String {
    if ms < 10_000 { format!("{ms} ms") } else { format!("{} s", ms / 1000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_followed_reads_well() {
        let order = FollowedOrder {
            label: Some("web".to_owned()),
            from: "registry".to_owned(),
            digest: None,
            why: "because".to_owned(),
            spans: 12,
            bytes: 2 << 20,
            pieces: 1,
            slices: 0,
            excerpt: None,
        };
        let want = "  follows: load order \"web\", from the registry: 12 spans (2.0 MiB) in 1 pieces; because";
        assert_eq!(follows(&order), want);
        let digest = crate::units::Digest::of(b"a");
        let artifact = FollowedOrder { label: None, from: "artifacts".to_owned(), digest: Some(digest), ..order };
        assert!(follows(&artifact).starts_with(&format!("  follows: prefetch artifact ({digest}): 12 spans")));
    }

    #[test]
    fn times_and_places_read_well() {
        assert_eq!((time(9999), time(10_000)), ("9999 ms".to_owned(), "10 s".to_owned()));
        assert_eq!(place(Some(4096), 10, Some("usr/bin/a\u{1b}[2J")), "10 bytes at 4096 in /usr/bin/a\\u{1b}[2J");
        assert_eq!(place(None, 10, None), "nowhere on the device");
    }
}
