//! Statements on the database. Each takes a connection or a transaction; none does more than SQL.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::records::{
    ArtifactKind, IndexFilter, IndexRecord, IndexedImage, PrefetchRecord, RecordedZtoc, SetBy, ZtocRecord, from_ms,
};
use crate::soci::{Kind, PREFETCH_TYPE, SociIndex};
use crate::units::{BlobOffset, Digest};

type Result<T> = rusqlite::Result<T>;

/// A row of `artifacts`.
pub(super) struct NewArtifact<'a> {
    pub digest: Digest,
    pub kind: ArtifactKind,
    pub size: u64,
    pub media_type: &'a str,
    pub location: &'a str,
    pub created_at_ms: i64,
}

/// Reads a column whose text only this program writes.
fn parsed<T>(row: &Row<'_>, column: usize, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    parse(text).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, format!("{text:?}").into())
    })
}

fn digest(row: &Row<'_>, column: usize) -> Result<Digest> {
    parsed(row, column, |text| text.parse().ok())
}

/// SQLite's numbers are signed; no size comes near the limit.
fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn size(row: &Row<'_>, column: usize) -> Result<BlobOffset> {
    let n: i64 = row.get(column)?;
    u64::try_from(n).map(BlobOffset::new).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, n))
}

fn optional_size(row: &Row<'_>, column: usize) -> Result<Option<u64>> {
    let n: Option<i64> = row.get(column)?;
    n.map(|n| u64::try_from(n).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, n))).transpose()
}

/// The kind of an index document.
pub(super) fn kind_of(index: &SociIndex) -> ArtifactKind {
    match index.kind {
        Kind::V1 { .. } => ArtifactKind::IndexV1,
        Kind::V2 => ArtifactKind::IndexV2,
        Kind::Own { .. } => ArtifactKind::IndexOwn,
    }
}

/// What the artifact with this digest is.
pub(super) fn kind(db: &Connection, artifact: &Digest) -> Result<Option<ArtifactKind>> {
    db.query_row("SELECT kind FROM artifacts WHERE digest = ?1", [artifact.to_string()], |row| {
        parsed(row, 0, ArtifactKind::from_word)
    })
    .optional()
}

/// Adds an artifact that is not known yet.
pub(super) fn add_artifact(db: &Connection, new: &NewArtifact<'_>) -> Result<()> {
    db.execute(
        "INSERT INTO artifacts (digest, kind, size_bytes, media_type, artifact_type, location, created_at_ms) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (digest) DO NOTHING",
        params![
            new.digest.to_string(),
            new.kind.word(),
            number(new.size),
            new.media_type,
            new.kind.artifact_type(),
            new.location,
            new.created_at_ms
        ],
    )?;
    Ok(())
}

/// Adds an index, or notes that it was made again, and what it lists. Leases on its parts end: from now on the index holds them.
pub(super) fn add_index(db: &Connection, new: &NewArtifact<'_>, index: &SociIndex) -> Result<()> {
    add_artifact(db, new)?;
    db.execute(
        "UPDATE artifacts SET created_at_ms = ?2, location = ?3 WHERE digest = ?1",
        params![new.digest.to_string(), new.created_at_ms, new.location],
    )?;
    let ztocs = index.ztocs.iter().map(|z| {
        (ArtifactKind::Ztoc, z.digest, z.size, z.layer_digest, z.layer_media_type.as_str(), z.span_size_bytes)
    });
    let prefetch = index.prefetch.iter().map(|p| (ArtifactKind::Prefetch, p.digest, p.size, p.layer_digest, "", None));
    for (position, (kind, part, size, layer, layer_media_type, span_size)) in (0_i64..).zip(ztocs.chain(prefetch)) {
        let media_type = if kind == ArtifactKind::Ztoc { index.kind.ztoc_type() } else { PREFETCH_TYPE };
        let created_at_ms = new.created_at_ms;
        let location = new.location;
        add_artifact(db, &NewArtifact { digest: part, kind, size: size.get(), media_type, location, created_at_ms })?;
        db.execute("UPDATE artifacts SET leased_until_ms = 0 WHERE digest = ?1", [part.to_string()])?;
        db.execute(
            "INSERT INTO index_parts (index_digest, position, part, layer, layer_media_type, span_size_bytes) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (index_digest, position) DO NOTHING",
            params![
                new.digest.to_string(),
                position,
                part.to_string(),
                layer.to_string(),
                layer_media_type,
                span_size.map(number)
            ],
        )?;
    }
    Ok(())
}

/// Says that an index belongs to an image; the last one that is said counts among equals.
pub(super) fn set_image(db: &Connection, index: &Digest, image: &IndexedImage) -> Result<()> {
    let (manifest, index) = (image.manifest.to_string(), index.to_string());
    let image_ref = image.image_ref.as_deref().unwrap_or_default();
    let platform = image.platform.as_ref().map(ToString::to_string).unwrap_or_default();
    db.execute(
        "DELETE FROM images WHERE manifest = ?1 AND index_digest = ?2 AND image_ref = ?3 AND set_by = ?4",
        params![manifest, index, image_ref, image.set_by.word()],
    )?;
    db.execute(
        "INSERT INTO images (manifest, index_digest, image_ref, platform, set_by) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![manifest, index, image_ref, platform, image.set_by.word()],
    )?;
    Ok(())
}

/// Records that a zTOC was built of a layer; the last record counts.
pub(super) fn record_ztoc(db: &Connection, layer: &Digest, ztoc: &RecordedZtoc) -> Result<()> {
    let (layer, digest) = (layer.to_string(), ztoc.digest.to_string());
    db.execute("DELETE FROM layer_ztocs WHERE layer = ?1 AND ztoc = ?2", [&layer, &digest])?;
    db.execute(
        "INSERT INTO layer_ztocs (layer, ztoc, span_size_bytes) VALUES (?1, ?2, ?3)",
        params![layer, digest, ztoc.span_size_bytes.map(number)],
    )?;
    Ok(())
}

/// Keeps an artifact from being collected for a while, although nothing refers to it yet.
pub(super) fn lease(db: &Connection, artifact: &Digest, until_ms: i64) -> Result<()> {
    db.execute(
        "UPDATE artifacts SET leased_until_ms = max(leased_until_ms, ?2) WHERE digest = ?1",
        params![artifact.to_string(), until_ms],
    )?;
    Ok(())
}

/// The zTOCs that were built of a layer, the last record first.
pub(super) fn ztocs_of(db: &Connection, layer: &Digest) -> Result<Vec<RecordedZtoc>> {
    let mut statement = db.prepare(
        "SELECT ztoc, size_bytes, span_size_bytes FROM layer_ztocs JOIN artifacts ON digest = ztoc \
         WHERE layer = ?1 ORDER BY number DESC",
    )?;
    let rows = statement.query_map([layer.to_string()], |row| {
        Ok(RecordedZtoc { digest: digest(row, 0)?, size: size(row, 1)?, span_size_bytes: optional_size(row, 2)? })
    })?;
    rows.collect()
}

/// The layers of which a zTOC was built here.
pub(super) fn layers_of(db: &Connection, ztoc: &Digest) -> Result<Vec<Digest>> {
    let mut statement = db.prepare("SELECT layer FROM layer_ztocs WHERE ztoc = ?1")?;
    statement.query_map([ztoc.to_string()], |row| digest(row, 0))?.collect()
}

const INDEX_COLUMNS: &str = "SELECT artifacts.digest, kind, size_bytes, media_type, location, created_at_ms, manifest, \
                             image_ref, platform, set_by FROM artifacts LEFT JOIN images ON index_digest = digest";

fn index_record(row: &Row<'_>) -> Result<IndexRecord> {
    let image = match row.get_ref(6)? {
        rusqlite::types::ValueRef::Null => None,
        _ => Some(IndexedImage {
            manifest: digest(row, 6)?,
            image_ref: Some(row.get::<_, String>(7)?).filter(|text| !text.is_empty()),
            platform: parsed(row, 8, |text| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) })?,
            set_by: parsed(row, 9, SetBy::from_word)?,
        }),
    };
    Ok(IndexRecord {
        digest: digest(row, 0)?,
        kind: parsed(row, 1, ArtifactKind::from_word)?,
        size: size(row, 2)?,
        media_type: row.get(3)?,
        location: row.get(4)?,
        created_at: from_ms(row.get(5)?),
        image,
    })
}

/// Indexes with their images, newest first.
pub(super) fn indexes(db: &Connection, filter: &IndexFilter) -> Result<Vec<IndexRecord>> {
    let mut statement = db.prepare(&format!(
        "{INDEX_COLUMNS} WHERE kind IN ('index-v1', 'index-v2', 'index-own') AND (?1 IS NULL OR image_ref = ?1) \
         ORDER BY created_at_ms DESC, artifacts.digest, number"
    ))?;
    let rows = statement.query_map([&filter.image_ref], index_record)?;
    let mut found = rows.collect::<Result<Vec<_>>>()?;
    if !filter.platforms.is_empty() {
        found.retain(|record| {
            let platform = record.image.as_ref().and_then(|image| image.platform.as_ref());
            platform.is_some_and(|platform| filter.platforms.contains(platform))
        });
    }
    Ok(found)
}

/// The indexes of an image, best first: by who said so, then the one that was said last.
pub(super) fn indexes_of(db: &Connection, manifest: &Digest) -> Result<Vec<IndexRecord>> {
    let mut statement = db.prepare(&format!("{INDEX_COLUMNS} WHERE manifest = ?1 ORDER BY number DESC"))?;
    let rows = statement.query_map([manifest.to_string()], index_record)?;
    let mut found = rows.collect::<Result<Vec<_>>>()?;
    found.sort_by_key(|record| record.image.as_ref().map(|image| image.set_by));
    Ok(found)
}

/// zTOCs by layer: those that were built here, and those that indexes list.
pub(super) fn ztocs(db: &Connection, ztoc: Option<&Digest>, image_ref: Option<&str>) -> Result<Vec<ZtocRecord>> {
    let mut statement = db.prepare(
        "SELECT digest, size_bytes, layer, max(span_size_bytes), max(built_here) FROM ( \
             SELECT part AS ztoc, layer, span_size_bytes, 0 AS built_here FROM index_parts \
                 WHERE ?2 IS NULL OR index_digest IN (SELECT index_digest FROM images WHERE image_ref = ?2) \
             UNION ALL \
             SELECT ztoc, layer, span_size_bytes, 1 FROM layer_ztocs \
                 WHERE ?2 IS NULL OR ztoc IN (SELECT part FROM index_parts WHERE index_digest IN \
                     (SELECT index_digest FROM images WHERE image_ref = ?2)) \
         ) JOIN artifacts ON digest = ztoc WHERE kind = 'ztoc' AND (?1 IS NULL OR digest = ?1) \
         GROUP BY digest, layer ORDER BY digest, layer",
    )?;
    let rows = statement.query_map(params![ztoc.map(ToString::to_string), image_ref], |row| {
        Ok(ZtocRecord {
            digest: digest(row, 0)?,
            size: size(row, 1)?,
            layer: digest(row, 2)?,
            span_size_bytes: optional_size(row, 3)?,
            built_here: row.get(4)?,
        })
    })?;
    rows.collect()
}

/// Load orders by layer.
pub(super) fn prefetches(db: &Connection) -> Result<Vec<PrefetchRecord>> {
    let mut statement = db.prepare(
        "SELECT DISTINCT digest, size_bytes, layer, created_at_ms FROM index_parts JOIN artifacts ON digest = part \
         WHERE kind = 'prefetch' ORDER BY digest, layer",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(PrefetchRecord {
            digest: digest(row, 0)?,
            size: size(row, 1)?,
            layer: digest(row, 2)?,
            created_at: from_ms(row.get(3)?),
        })
    })?;
    rows.collect()
}

/// All artifacts with their kind and lease.
pub(super) fn artifacts(db: &Connection) -> Result<Vec<(Digest, ArtifactKind, i64)>> {
    let mut statement = db.prepare("SELECT digest, kind, leased_until_ms FROM artifacts")?;
    let rows =
        statement.query_map([], |row| Ok((digest(row, 0)?, parsed(row, 1, ArtifactKind::from_word)?, row.get(2)?)))?;
    rows.collect()
}

/// What an index lists: zTOCs and load orders.
pub(super) fn parts_of(db: &Connection, index: &Digest) -> Result<Vec<Digest>> {
    let mut statement = db.prepare("SELECT DISTINCT part FROM index_parts WHERE index_digest = ?1")?;
    statement.query_map([index.to_string()], |row| digest(row, 0))?.collect()
}

/// Whether an index lists the artifact.
pub(super) fn is_listed(db: &Connection, part: &Digest) -> Result<bool> {
    db.query_row("SELECT EXISTS (SELECT 1 FROM index_parts WHERE part = ?1)", [part.to_string()], |row| row.get(0))
}

/// Until when an artifact is leased, in ms since 1970.
pub(super) fn leased_until(db: &Connection, artifact: &Digest) -> Result<i64> {
    db.query_row("SELECT leased_until_ms FROM artifacts WHERE digest = ?1", [artifact.to_string()], |row| row.get(0))
}

/// Forgets an artifact and what hangs on it.
pub(super) fn forget(db: &Connection, artifact: &Digest) -> Result<()> {
    db.execute("DELETE FROM artifacts WHERE digest = ?1", [artifact.to_string()])?;
    Ok(())
}

/// Forgets that an index belongs to an image.
pub(super) fn unset_image(db: &Connection, manifest: &Digest, set_by: SetBy) -> Result<usize> {
    db.execute("DELETE FROM images WHERE manifest = ?1 AND set_by = ?2", params![manifest.to_string(), set_by.word()])
}

/// Forgets that an index belongs to the image of this name.
pub(super) fn unset_ref(db: &Connection, index: &Digest, image_ref: &str) -> Result<()> {
    db.execute("DELETE FROM images WHERE index_digest = ?1 AND image_ref = ?2", params![index.to_string(), image_ref])?;
    Ok(())
}

/// Forgets everything.
pub(super) fn clear(db: &Connection) -> Result<()> {
    db.execute_batch("DELETE FROM images; DELETE FROM index_parts; DELETE FROM layer_ztocs; DELETE FROM artifacts;")
}
