//! Every key of SOCI's settings.

use toml::Value;

use super::super::{OrderPolicy, Size, WithoutIndex};
use super::Draft;

/// A key of SOCI's settings.
pub(super) struct Key {
    /// Its dotted name; `*` stands for any one name.
    pub(super) name: &'static str,
    /// What SOCI takes without it.
    pub(super) default: Default,
    /// What it becomes.
    pub(super) to: To,
}

/// Values that SOCI takes without a key.
pub(super) enum Default {
    Number(i64),
    Text(&'static str),
    Flag(bool),
    /// There is none.
    None,
}

/// What a key becomes.
pub(super) enum To {
    /// One of our settings.
    Setting { to: &'static str, set: fn(&mut Draft, &Value) -> Result<(), String> },
    /// The same in our settings.
    Mirrors,
    /// Nothing.
    Nothing { reason: &'static str },
    /// Nothing, though somebody may want it.
    Missing { reason: &'static str },
}

impl Key {
    /// Whether the value asks for nothing in particular.
    pub(super) fn is_default(&self, value: &Value) -> bool {
        match (&self.default, value) {
            (Default::Number(default), Value::Integer(number)) => number == default || *number == 0,
            (Default::Text(default), Value::String(text)) => text == default || text.is_empty(),
            (Default::Flag(default), Value::Boolean(flag)) => flag == default,
            _ => false,
        }
    }
}

const fn setting(
    name: &'static str,
    default: Default,
    to: &'static str,
    set: fn(&mut Draft, &Value) -> Result<(), String>,
) -> Key {
    Key { name, default, to: To::Setting { to, set } }
}
const fn nothing(name: &'static str, default: Default, reason: &'static str) -> Key {
    Key { name, default, to: To::Nothing { reason } }
}
const fn missing(name: &'static str, default: Default, reason: &'static str) -> Key {
    Key { name, default, to: To::Missing { reason } }
}
const fn mirrors(name: &'static str) -> Key {
    Key { name, default: Default::None, to: To::Mirrors }
}

const CACHE: &str = "spans are inflated once, into a file for each layer; the kernel caches what is read";
const NO_FUSE_FS: &str = "files are served by the kernel's EROFS, not over FUSE, and are cached as those of any disk";
const NO_FILE_DATABASE: &str = "files are in no database: the zTOC becomes EROFS metadata";
const RETRIES: &str = "requests are tried again, with growing pauses, until fill.hold_limit_s is over";
const BACKGROUND: &str = "background work uses bandwidth that readers leave; fill.background_bytes_per_s bounds it";
const WHOLE_LAYERS: &str =
    "layers are shown at once and completed in the background; there is no mode that waits for whole images";
const PER_IMAGE: &str = "there is one limit for all images; readers come first whatever their image";
const UNPACKING: &str = "layers are not unpacked: what is inflated is what is shown";
const DECOMPRESSORS: &str = "layers are inflated in the daemon, from many places at once; no other program is run";
const STORE: &str = "indexes are in a store of their own under the root, layers in files; `sociblk index gc` and cache.max_bytes make room";
const LOAD_ORDERS: &str = "load orders of all layers are followed at once, behind readers, within fill.max_requests";

use Default::{Flag, None as NoDefault, Number, Text};

/// By section, in SOCI's order.
pub(super) const KEYS: &[Key] = &[
    nothing("http_cache_type", Text(""), CACHE),
    nothing("filesystem_cache_type", Text(""), CACHE),
    nothing("resolve_result_entry", Number(30), "what is known of a layer stays on disk, without a limit of entries"),
    nothing("debug", Flag(false), "SOCIBLK_LOG and --log-level say how much is logged"),
    nothing(
        "disable_verification",
        Flag(false),
        "every span is checked against its digest, which costs next to nothing",
    ),
    nothing("max_concurrency", Number(100), "layers are prepared side by side without a fixed number"),
    setting("mount_timeout_sec", Number(30), "registry.resolve_timeout_s", |draft, value| {
        draft.config.registry.resolve_timeout_s = positive(value)?;
        Ok(())
    }),
    nothing("fuse_metrics_emit_wait_duration_sec", Number(60), NO_FUSE_FS),
    setting("no_prometheus", Flag(false), "snapshotter.metrics_address", |draft, value| {
        draft.no_metrics = flag(value)?;
        Ok(())
    }),
    setting("metrics_address", Text(""), "snapshotter.metrics_address", |draft, value| {
        draft.metrics_address = text(value)?.to_owned();
        Ok(())
    }),
    setting("metrics_network", Text("tcp"), "snapshotter.metrics_address", |draft, value| {
        draft.metrics_over_unix = match text(value)? {
            "unix" => true,
            "tcp" => false,
            other => return Err(format!("{other:?} is neither \"tcp\" nor \"unix\"")),
        };
        Ok(())
    }),
    missing(
        "debug_address",
        Text(""),
        "there is no profiler to connect to; `sociblk stats` and metrics show what is done",
    ),
    nothing("metadata_store", Text("db"), NO_FILE_DATABASE),
    nothing("metadata_db_no_sync", Flag(false), NO_FILE_DATABASE),
    nothing("metadata_insertion_chunk_size", Number(5000), NO_FILE_DATABASE),
    nothing(
        "skip_check_snapshotter_supported",
        Flag(false),
        "`sociblk doctor` checks; nothing is checked at each start",
    ),
    setting("http.DialTimeoutMsec", Number(3000), "registry.connect_timeout_s", |draft, value| {
        draft.config.registry.connect_timeout_s = seconds(value)?;
        Ok(())
    }),
    setting("http.ResponseHeaderTimeoutMsec", Number(3000), "registry.idle_timeout_s", |draft, value| {
        draft.config.registry.idle_timeout_s = seconds(value)?;
        Ok(())
    }),
    nothing(
        "http.RequestTimeoutMsec",
        Number(300_000),
        "a request may take as long as bytes arrive (registry.idle_timeout_s)",
    ),
    nothing("http.MaxRetries", Number(8), RETRIES),
    nothing("http.MinWaitMsec", Number(30), RETRIES),
    nothing("http.MaxWaitMsec", Number(300_000), RETRIES),
    nothing(
        "blob.valid_interval",
        Number(60),
        "connections are not checked in advance: a request that fails goes elsewhere",
    ),
    setting("blob.fetching_timeout_sec", Number(300), "fill.hold_limit_s", |draft, value| {
        draft.config.fill.hold_limit_s = positive(value)?;
        Ok(())
    }),
    nothing("blob.max_retries", Number(8), RETRIES),
    nothing("blob.min_wait_msec", Number(30), RETRIES),
    nothing("blob.max_wait_msec", Number(300_000), RETRIES),
    nothing(
        "blob.check_always",
        Flag(false),
        "connections are not checked in advance: a request that fails goes elsewhere",
    ),
    nothing("blob.force_single_range_mode", Flag(false), "a request never asks for more than one range"),
    nothing(
        "blob.max_span_verification_retries",
        Number(0),
        "a span that is not what its digest says is fetched once more",
    ),
    nothing("directory_cache.max_lru_cache_entry", Number(10), CACHE),
    nothing("directory_cache.max_cache_fds", Number(10), CACHE),
    nothing("directory_cache.sync_add", Flag(false), CACHE),
    nothing("directory_cache.direct", Flag(true), CACHE),
    nothing("fuse.attr_timeout", Number(1), NO_FUSE_FS),
    nothing("fuse.entry_timeout", Number(1), NO_FUSE_FS),
    nothing("fuse.negative_timeout", Number(1), NO_FUSE_FS),
    nothing("fuse.log_fuse_operations", Flag(false), NO_FUSE_FS),
    setting("background_fetch.disable", Flag(false), "snapshotter.background", |draft, value| {
        draft.config.snapshotter.background = !flag(value)?;
        Ok(())
    }),
    nothing("background_fetch.silence_period_msec", Number(30_000), BACKGROUND),
    nothing("background_fetch.fetch_period_msec", Number(500), BACKGROUND),
    nothing("background_fetch.max_queue_size", Number(300), "no layer is dropped from background work"),
    nothing("background_fetch.drop_policy", Text("newest"), "no layer is dropped from background work"),
    nothing("background_fetch.emit_metric_period_sec", Number(10), "metrics are counted when they are asked for"),
    nothing("content_store.type", Text("soci"), STORE),
    setting(
        "content_store.containerd_address",
        Text("/run/containerd/containerd.sock"),
        "snapshotter.containerd_address",
        |draft, value| {
            draft.config.snapshotter.containerd_address = text(value)?.to_owned();
            Ok(())
        },
    ),
    nothing("content_store.namespace", Text(""), STORE),
    setting("prefetch.enable", Flag(false), "load_order.policy", |draft, value| {
        draft.config.load_order.policy = if flag(value)? { OrderPolicy::Newest } else { OrderPolicy::Off };
        Ok(())
    }),
    nothing("prefetch.max_concurrency", Number(0), LOAD_ORDERS),
    nothing("pull_modes.soci_v1.enable", Flag(false), "indexes of both versions are looked for, v2 first"),
    missing("pull_modes.soci_v2.enable", Flag(true), "indexes of both versions are looked for, v2 first"),
    missing("pull_modes.parallel_pull_unpack.enable", Flag(false), WHOLE_LAYERS),
    setting(
        "pull_modes.parallel_pull_unpack.max_concurrent_downloads",
        Number(-1),
        "fill.max_requests",
        |draft, value| {
            draft.config.fill.max_requests = positive(value)?.try_into().map_err(|_| "is too large".to_owned())?;
            Ok(())
        },
    ),
    nothing("pull_modes.parallel_pull_unpack.max_concurrent_downloads_per_image", Number(3), PER_IMAGE),
    nothing(
        "pull_modes.parallel_pull_unpack.concurrent_download_chunk_size",
        Text(""),
        "requests are as large as what is missing between checkpoints",
    ),
    setting("pull_modes.parallel_pull_unpack.max_concurrent_unpacks", Number(-1), "fill.threads", |draft, value| {
        draft.config.fill.threads = positive(value)?.try_into().map_err(|_| "is too large".to_owned())?;
        Ok(())
    }),
    nothing("pull_modes.parallel_pull_unpack.max_concurrent_unpacks_per_image", Number(1), PER_IMAGE),
    nothing("pull_modes.parallel_pull_unpack.discard_unpacked_layers", Flag(false), UNPACKING),
    setting(
        "pull_modes.parallel_pull_unpack.experimental_parallel_pull_as_fallback",
        Flag(false),
        "snapshotter.without_index",
        |draft, value| {
            draft.config.snapshotter.without_index =
                if flag(value)? { WithoutIndex::Stream } else { WithoutIndex::Defer };
            Ok(())
        },
    ),
    nothing("pull_modes.parallel_pull_unpack.decompress_streams.*.path", NoDefault, DECOMPRESSORS),
    nothing("pull_modes.parallel_pull_unpack.decompress_streams.*.args", NoDefault, DECOMPRESSORS),
    setting("kubeconfig_keychain.enable_keychain", Flag(false), "credentials.kubernetes", |draft, value| {
        draft.config.credentials.kubernetes = flag(value)?;
        Ok(())
    }),
    setting("kubeconfig_keychain.kubeconfig_path", Text(""), "credentials.kubeconfig", |draft, value| {
        text(value)?.clone_into(&mut draft.config.credentials.kubeconfig);
        Ok(())
    }),
    setting("cri_keychain.enable_keychain", Flag(false), "credentials.cri", |draft, value| {
        draft.config.credentials.cri = flag(value)?;
        Ok(())
    }),
    setting(
        "cri_keychain.image_service_path",
        Text("/run/containerd/containerd.sock"),
        "credentials.cri_image_service",
        |draft, value| {
            text(value)?.clone_into(&mut draft.config.credentials.cri_image_service);
            Ok(())
        },
    ),
    nothing("resolver.auth_client_ttl_sec", Number(3600), "tokens are renewed before they end"),
    nothing(
        "resolver.enable_auth_client_sharing",
        Flag(false),
        "connections are shared by all images of a host, tokens by none",
    ),
    mirrors("resolver.host.*.mirrors.host"),
    mirrors("resolver.host.*.mirrors.insecure"),
    mirrors("resolver.host.*.mirrors.request_timeout_sec"),
    setting("snapshotter.min_layer_size", Number(0), "snapshotter.min_layer_size", |draft, value| {
        draft.config.snapshotter.min_layer_size = Size(positive(value)?);
        Ok(())
    }),
    nothing(
        "snapshotter.allow_invalid_mounts_on_restart",
        Flag(false),
        "no snapshot keeps the daemon from starting; what cannot be shown now is shown when it can",
    ),
];

fn positive(value: &Value) -> Result<u64, String> {
    match value {
        Value::Integer(number) => {
            u64::try_from(*number).ok().filter(|number| *number > 0).ok_or_else(|| format!("{number} is not positive"))
        }
        other => Err(format!("{other} is no number")),
    }
}

/// Milliseconds as seconds, at least one.
fn seconds(value: &Value) -> Result<u64, String> {
    Ok(positive(value)?.div_ceil(1000))
}

fn flag(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("{value} is neither true nor false"))
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("{value} is no text"))
}
