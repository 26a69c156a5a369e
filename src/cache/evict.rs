//! The disk budget: whole layers that nobody has open go first, oldest use first, then spans of open layers.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::store::{InUse, Shared, forget};
use super::{CacheError, LayerFile, lock};
use crate::units::{Digest, SpanId};

/// Least that a full disk is asked to give back at once: evicting span by span would fill and empty it in turns.
const LEAST_ROOM_BYTES: u64 = 64 << 20;

/// A layer's folder as the disk shows it.
struct Found {
    digest: Digest,
    folder: PathBuf,
    disk_bytes: u64,
    used: SystemTime,
}

/// Counts what the layer files take, by allocated blocks.
pub(super) fn measure(shared: &Shared) -> Result<u64, CacheError> {
    let total = scan(shared)?.iter().map(|f| f.disk_bytes).sum();
    shared.usage_bytes.store(total, Ordering::Relaxed);
    Ok(total)
}

/// Evicts when the limit is exceeded, down to a twentieth below it so that the next write does not evict again.
pub(super) fn keep_limit(shared: &Shared) {
    let limit = shared.config.max_bytes;
    if shared.usage_bytes.load(Ordering::Relaxed) <= limit {
        return;
    }
    match shrink_to(shared, limit - limit / 20) {
        Ok(_) => {
            let over = shared.usage_bytes.load(Ordering::Relaxed) > limit;
            if over && !shared.over_limit.swap(over, Ordering::Relaxed) {
                tracing::warn!(limit_bytes = limit, "the cache exceeds its limit: everything in it is in use");
            } else if !over {
                shared.over_limit.store(false, Ordering::Relaxed);
            }
        }
        Err(error) => tracing::error!(%error, "cannot evict from the cache"),
    }
}

/// Frees at least `bytes`, if possible; returns what was freed.
pub(super) fn make_room(shared: &Shared, bytes: u64) -> Result<u64, CacheError> {
    let usage = measure(shared)?;
    shrink_to(shared, usage.saturating_sub(bytes.max(LEAST_ROOM_BYTES)))
}

/// Evicts until at most `target_bytes` are used or nothing more may go; returns what was freed.
pub(super) fn shrink_to(shared: &Shared, target_bytes: u64) -> Result<u64, CacheError> {
    let _one_at_a_time = lock(&shared.evicting);
    let before = measure(shared)?;
    let mut excess = before.saturating_sub(target_bytes);
    if excess == 0 {
        return Ok(0);
    }
    let mut found = scan(shared)?;
    found.sort_by_key(|f| f.used);
    for layer in found {
        if excess == 0 {
            break;
        }
        if remove_unused(shared, &layer)? {
            excess = excess.saturating_sub(layer.disk_bytes);
        }
    }
    if excess > 0 && shared.can_punch {
        evict_spans(shared, excess)?;
    }
    Ok(before.saturating_sub(measure(shared)?))
}

fn evict_spans(shared: &Shared, mut excess: u64) -> Result<(), CacheError> {
    let idle_secs = u32::try_from(shared.config.min_idle.as_secs()).unwrap_or(u32::MAX);
    let Some(not_after) = shared.now_secs().checked_sub(idle_secs) else { return Ok(()) };
    let open: Vec<Arc<LayerFile>> = lock(&shared.in_use)
        .values()
        .filter_map(|used| match used {
            InUse::Open(file) => file.upgrade(),
            InUse::Ingest => None,
        })
        .collect();
    let mut idle: Vec<(u32, usize, SpanId)> = Vec::new();
    for (index, file) in open.iter().enumerate() {
        idle.extend(file.idle_spans(not_after).into_iter().map(|(touched, id)| (touched, index, id)));
    }
    idle.sort_unstable_by_key(|(touched, index, id)| (*touched, *index, *id));
    let mut chosen: Vec<Vec<SpanId>> = vec![Vec::new(); open.len()];
    for (_, index, id) in idle {
        if excess == 0 {
            break;
        }
        let size = open.get(index).map_or(0, |file| file.evictable_bytes(id));
        if let Some(list) = chosen.get_mut(index) {
            list.push(id);
        }
        excess = excess.saturating_sub(size);
    }
    for (file, ids) in open.iter().zip(&chosen) {
        file.evict(ids)?;
    }
    Ok(())
}

/// Removes a layer that nobody has open; whether it went.
fn remove_unused(shared: &Shared, layer: &Found) -> Result<bool, CacheError> {
    let mut in_use = lock(&shared.in_use);
    match in_use.get(&layer.digest) {
        Some(InUse::Ingest) => return Ok(false),
        Some(InUse::Open(file)) if file.strong_count() > 0 => return Ok(false),
        _ => {}
    }
    in_use.remove(&layer.digest);
    // What names the bytes goes first: a crash half-way leaves a folder that counts as empty.
    forget(&layer.folder)?;
    std::fs::remove_dir_all(&layer.folder).map_err(CacheError::io("remove", &layer.folder))?;
    tracing::info!(layer = %layer.digest.short(), disk_bytes = layer.disk_bytes, "evicted a layer that is not in use");
    Ok(true)
}

fn scan(shared: &Shared) -> Result<Vec<Found>, CacheError> {
    let top = &shared.layers_folder;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(top).map_err(CacheError::io("list", top))? {
        let entry = entry.map_err(CacheError::io("list", top))?;
        let name = entry.file_name();
        let digest = name.to_str().and_then(|hex| format!("sha256:{hex}").parse().ok());
        // Foreign files are left alone and not counted.
        let Some(digest) = digest else { continue };
        let folder = entry.path();
        let disk_bytes = std::fs::metadata(folder.join("data")).map_or(0, |meta| meta.blocks() * 512);
        let used = std::fs::metadata(folder.join("state.json")).and_then(|meta| meta.modified());
        found.push(Found { digest, folder, disk_bytes, used: used.unwrap_or(SystemTime::UNIX_EPOCH) });
    }
    Ok(found)
}
