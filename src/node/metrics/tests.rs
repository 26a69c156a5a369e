//! What is served, what is documented, and what the dashboard asks for are the same.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Words of a text that look like metrics of ours.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let prefixes = ["soci_fs_", "sociblk_", "process_"];
    words
        .filter(|word| prefixes.iter().any(|p| word.starts_with(p) && word.len() > p.len()))
        .map(str::to_owned)
        .collect()
}

fn emitted() -> BTreeSet<String> {
    let text = page(&Listing::default(), &[(Reason::NoIndex, 1)], &[(Outcome::Kept, 1)], Some(&Counters::default()));
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_served() {
    // The first column alone: the others may speak of the metrics of others.
    let documented = document("METRICS.md")
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| names(line.split('|').nth(1).unwrap_or_default()))
        .collect::<BTreeSet<_>>();
    assert_eq!(documented, emitted());
}

#[test]
fn every_reason_is_documented() {
    let text = document("METRICS.md");
    for reason in Reason::FALLBACKS {
        assert!(text.contains(&format!("`{}`", reason.word())), "{} is not in METRICS.md", reason.word());
    }
}

#[test]
fn every_end_of_a_look_for_a_load_order_is_documented() {
    let text = document("METRICS.md");
    for outcome in Outcome::ALL {
        assert!(text.contains(&format!("`{}`", outcome.word())), "{} is not in METRICS.md", outcome.word());
    }
    let counts: Vec<_> = Outcome::ALL.into_iter().zip(1..).collect();
    let page = page(&Listing::default(), &[], &counts, None);
    assert!(page.contains("sociblk_load_orders_total{outcome=\"registry\"} 3\n"), "{page}");
}

#[test]
fn the_dashboard_asks_only_for_what_is_served() {
    let board: serde_json::Value = serde_json::from_str(&document("grafana.json")).expect("JSON");
    let panels = board["panels"].as_array().expect("panels");
    let queries: Vec<&str> = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten()
        .map(|target| target["expr"].as_str().expect("a query"))
        .collect();
    assert!(queries.len() > 10, "{queries:?}");
    let served = emitted();
    let mut asked = BTreeSet::new();
    for query in queries {
        let of_query: Vec<String> = names(query).into_iter().map(|name| name.replace("_bucket", "")).collect();
        assert!(!of_query.is_empty(), "{query} asks for nothing of ours");
        asked.extend(of_query);
    }
    let unknown: Vec<_> = asked.difference(&served).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    // A panel's number is how Grafana tells panels apart.
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().expect("id")).collect();
    assert_eq!(ids.len(), panels.len());
}

#[test]
fn names_are_unique_and_of_the_right_kind() {
    assert_eq!(emitted().len(), METRICS.len());
    for metric in METRICS {
        let counts = metric.name.ends_with("_total") || metric.name.ends_with("_count");
        assert_eq!(counts, metric.kind == COUNTER, "{}", metric.name);
    }
}

#[test]
fn a_layer_has_a_series_for_each_of_its_metrics() {
    let text = page(&Listing { layers: vec![layer()], ..Listing::default() }, &[], &[], None);
    let series = text.lines().filter(|line| line.contains("{digest=")).count();
    assert_eq!(series, METRICS.iter().filter(|metric| matches!(metric.values, Layer(_))).count());
    let labels = format!("digest=\"{}\",mountpoint=\"/dev/ublkb7\"", layer().digest);
    for (name, value) in
        [("soci_fs_layer_size_bytes", 10), ("sociblk_layer_spans", 4), ("sociblk_layer_waits_total", 3)]
    {
        assert!(text.contains(&format!("{name}{{{labels}}} {value}\n")), "{name}: {text}");
    }
    assert!(!text.contains("sociblk_snapshots_prepared_total"), "there is no snapshotter");
}

fn layer() -> LayerStatus {
    LayerStatus {
        digest: crate::units::Digest::of(b"layer"),
        device: "/dev/ublkb7".into(),
        frontend: "ublk".to_owned(),
        used_by: 1,
        blob_bytes: 10,
        layer_bytes: 20,
        present_bytes: 5,
        fetched_bytes: 5,
        requests: 1,
        retries: 0,
        spans: 4,
        present_spans: 1,
        slices: 0,
        contradicted: false,
        background_spans: 0,
        waits: 3,
        waited_ms: 30,
        proven: false,
        waiting_readers: 0,
        oldest_wait_ms: 0,
        failed_reads: 0,
        last_error: None,
        load_order: None,
    }
}
