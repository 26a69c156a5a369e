//! Random operations against a model of containerd's rules (core/snapshots/storage/bolt.go) in a map.

use proptest::prelude::*;
use tonic::Code;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Prepare(usize, usize),
    Layer { key: usize, parent: usize, layer: usize, behave: Behave },
    View(usize, usize),
    Commit { name: usize, key: usize, parent: usize },
    Remove(usize),
    Update(usize, Vec<Option<usize>>, u8),
    Mounts(usize),
    Usage(usize),
    Cleanup,
    LoseAll,
    Restart,
}

/// Names that operations pick from; the first is none. The last are those that layers get.
fn name(n: usize) -> String {
    match n {
        0 => String::new(),
        1..=5 => format!("n{n}"),
        _ => chain_id(n - 5),
    }
}

const NAMES: usize = 8;
/// Fields of an update, as its mask names them.
const FIELDS: [&str; 4] = ["labels", "labels.a", "labels.b", "parent"];

fn op() -> impl Strategy<Value = Op> {
    let any = || 0..NAMES;
    let behave = prop_oneof![4 => Just(Behave::Lazy), 1 => Just(Behave::Whole), 1 => Just(Behave::NoIndex), 1 => Just(Behave::Fail)];
    let labels = proptest::collection::vec(proptest::option::of(0..3_usize), 2);
    prop_oneof![
        4 => (any(), any()).prop_map(|(key, parent)| Op::Prepare(key, parent)),
        4 => (any(), any(), 1..3_usize, behave)
            .prop_map(|(key, parent, layer, behave)| Op::Layer { key, parent, layer, behave }),
        2 => (any(), any()).prop_map(|(key, parent)| Op::View(key, parent)),
        4 => (any(), any(), prop_oneof![3 => Just(0), 1 => any()])
            .prop_map(|(name, key, parent)| Op::Commit { name, key, parent }),
        3 => any().prop_map(Op::Remove),
        2 => (any(), labels, 0..16_u8).prop_map(|(name, labels, fields)| Op::Update(name, labels, fields)),
        2 => any().prop_map(Op::Mounts),
        1 => any().prop_map(Op::Usage),
        1 => Just(Op::Cleanup),
        1 => Just(Op::LoseAll),
        1 => Just(Op::Restart),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    kind: Kind,
    parent: String,
    labels: Labels,
    /// Shown by the layers rather than kept in a directory.
    shown: bool,
}

#[derive(Default)]
struct Model(BTreeMap<String, Entry>);

impl Model {
    fn may_create(&self, key: &str, parent: &str) -> Result<(), Code> {
        if key.is_empty() {
            return Err(Code::InvalidArgument);
        }
        if !parent.is_empty() {
            let parent = self.0.get(parent).ok_or(Code::NotFound)?;
            if parent.kind != Kind::Committed {
                return Err(Code::InvalidArgument);
            }
        }
        if self.0.contains_key(key) { Err(Code::AlreadyExists) } else { Ok(()) }
    }

    fn create(&mut self, key: &str, parent: &str, kind: Kind, labels: Labels) -> Result<(), Code> {
        self.may_create(key, parent)?;
        self.0.insert(key.to_owned(), Entry { kind, parent: parent.to_owned(), labels, shown: false });
        Ok(())
    }

    fn layer(&mut self, key: &str, parent: &str, layer: usize, behave: Behave) -> Result<(), Code> {
        self.may_create(key, parent)?;
        let labels = image_labels("registry/app:1", layer);
        let there = self.0.values().any(|entry| {
            entry.kind == Kind::Committed
                && entry.parent == parent
                && entry.labels.get(SNAPSHOT_REF) == labels.get(SNAPSHOT_REF)
        });
        if there {
            return Err(Code::AlreadyExists);
        }
        if matches!(behave, Behave::NoIndex | Behave::Fail) {
            return self.create(key, parent, Kind::Active, labels);
        }
        // A chain ID that is taken by something else: the test looks for the one with another name.
        let name =
            if self.0.contains_key(&chain_id(layer)) { format!("other {layer} {parent}") } else { chain_id(layer) };
        self.0.insert(name, Entry { kind: Kind::Committed, parent: parent.to_owned(), labels, shown: true });
        Err(Code::AlreadyExists)
    }

    fn commit(&mut self, name: &str, key: &str, parent: &str) -> Result<(), Code> {
        let mut entry = self.0.get(key).ok_or(Code::NotFound)?.clone();
        if name.is_empty() {
            return Err(Code::InvalidArgument);
        }
        if self.0.contains_key(name) {
            return Err(Code::AlreadyExists);
        }
        if entry.kind != Kind::Active {
            return Err(Code::FailedPrecondition);
        }
        if !parent.is_empty() && parent != entry.parent {
            if !entry.parent.is_empty() {
                return Err(Code::InvalidArgument);
            }
            match self.0.get(parent) {
                None => return Err(Code::NotFound),
                Some(parent) if parent.kind != Kind::Committed => return Err(Code::InvalidArgument),
                Some(_) => entry.parent = parent.to_owned(),
            }
        }
        self.0.remove(key);
        self.0.insert(name.to_owned(), Entry { kind: Kind::Committed, labels: gc_root(), ..entry });
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), Code> {
        self.0.get(name).ok_or(Code::NotFound)?;
        if self.0.values().any(|entry| entry.parent == name) {
            return Err(Code::FailedPrecondition);
        }
        self.0.remove(name);
        Ok(())
    }

    fn update(&mut self, name: &str, wanted: &Labels, fields: &[String]) -> Result<(), Code> {
        let entry = self.0.get_mut(name).ok_or(Code::NotFound)?;
        let mut labels = entry.labels.clone();
        if fields.is_empty() {
            labels.clone_from(wanted);
        }
        for field in fields {
            match field.strip_prefix("labels.") {
                Some(key) => drop(labels.insert(key.to_owned(), wanted.get(key).cloned().unwrap_or_default())),
                None if field == "labels" => labels.clone_from(wanted),
                None => return Err(Code::InvalidArgument),
            }
        }
        labels.retain(|_, value| !value.is_empty());
        entry.labels = labels;
        Ok(())
    }
}

/// Labels that only ours carry are none of the model's.
fn without_ours(mut labels: Labels) -> Labels {
    labels.retain(|key, _| !key.starts_with("containerd.io/snapshot/remote"));
    labels
}

async fn check(ops: Vec<Op>) {
    let (mut world, mut model) = (World::new(), Model::default());
    for (step, op) in ops.iter().enumerate() {
        let sn = world.snapshotter.clone();
        let (got, want) = match op {
            Op::Prepare(key, parent) => (
                world.prepare(&name(*key), &name(*parent)).await.map(drop),
                model.create(&name(*key), &name(*parent), Kind::Active, gc_root()),
            ),
            Op::View(key, parent) => (
                world.view(&name(*key), &name(*parent)).await.map(drop),
                model.create(&name(*key), &name(*parent), Kind::View, gc_root()),
            ),
            Op::Layer { key, parent, layer, behave } => {
                // Those below must not be what fails.
                sn.restore().await.expect("restores");
                world.layers.state().behave = *behave;
                let labels = image_labels("registry/app:1", *layer);
                let got = sn.prepare(Some(NAMESPACE), &name(*key), &name(*parent), labels).await.map(drop);
                world.layers.state().behave = Behave::Lazy;
                (got, model.layer(&name(*key), &name(*parent), *layer, *behave))
            }
            Op::Commit { name: new, key, parent } => (
                sn.commit(&name(*new), &name(*key), &name(*parent), gc_root()).await,
                model.commit(&name(*new), &name(*key), &name(*parent)),
            ),
            Op::Remove(n) => (sn.remove(&name(*n)).await, model.remove(&name(*n))),
            Op::Update(n, values, mask) => {
                let mut wanted = Labels::new();
                for (key, value) in ["a", "b"].iter().zip(values) {
                    if let Some(value) = value {
                        // Zero: the empty value, which is none.
                        wanted.insert((*key).to_owned(), "v".repeat(*value));
                    }
                }
                let fields = FIELDS.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1);
                let fields: Vec<String> = fields.map(|(_, field)| (*field).to_owned()).collect();
                let want = model.update(&name(*n), &wanted, &fields);
                (sn.update(&name(*n), wanted, fields).await.map(drop), want)
            }
            Op::Mounts(n) => {
                let want = match model.0.get(&name(*n)) {
                    None => Err(Code::NotFound),
                    Some(entry) if entry.kind == Kind::Committed => Err(Code::FailedPrecondition),
                    Some(_) => Ok(()),
                };
                (sn.mounts(&name(*n)).await.map(drop), want)
            }
            Op::Usage(n) => {
                let want = if model.0.contains_key(&name(*n)) { Ok(()) } else { Err(Code::NotFound) };
                (sn.usage(&name(*n)).await.map(drop), want)
            }
            Op::Cleanup => (sn.cleanup().await, Ok(())),
            Op::LoseAll => {
                world.layers.lose_all();
                (Ok(()), Ok(()))
            }
            Op::Restart => {
                drop(sn);
                world = world.restart();
                (world.snapshotter.reconcile().await, Ok(()))
            }
        };
        assert_eq!(got.map_err(|error| code(&error)), want, "step {step}: {op:?} of {ops:?}");
        let mut listed = BTreeMap::new();
        for info in world.snapshotter.list(&[]).await.expect("lists") {
            // The name of a layer whose chain ID was taken is ours to choose.
            let key = match (1..3).find(|layer| info.name.starts_with(&format!("{}/", chain_id(*layer)))) {
                Some(layer) => format!("other {layer} {}", info.parent),
                None => info.name,
            };
            listed.insert(key, (info.kind, info.parent, without_ours(info.labels)));
        }
        let wanted: BTreeMap<_, _> = model
            .0
            .iter()
            .map(|(name, entry)| (name.clone(), (entry.kind, entry.parent.clone(), without_ours(entry.labels.clone()))))
            .collect();
        assert_eq!(listed, wanted, "step {step}: {op:?} of {ops:?}");
    }
    world.snapshotter.cleanup().await.expect("cleans");
    world.snapshotter.restore().await.expect("restores");
    assert_eq!(world.entries().len(), model.0.len());
    let shown = model.0.values().filter(|entry| entry.shown).count();
    assert_eq!(world.layers.owners().await.len(), shown);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn snapshots_follow_containerds_rules(ops in proptest::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(check(ops));
    }
}
