//! The flatbuffers library's own verifier as a foreign judge: documents that we write are sound for others.

use flatbuffers::{ForwardsUOffset, InvalidFlatbuffer, Vector, Verifiable, Verifier, VerifierOptions};

use proptest::prelude::*;

use super::properties::{any_entry, document, lay_out};
use crate::spans::ztoc::{Ztoc, ZtocError};

type Checked = Result<(), InvalidFlatbuffer>;
type Bytes = ForwardsUOffset<Vector<'static, u8>>;
type Tables<T> = ForwardsUOffset<Vector<'static, ForwardsUOffset<T>>>;

struct Root;
struct Toc;
struct Entry;
struct Record;
struct Info;

fn slot(n: u16) -> u16 {
    4 + 2 * n
}

impl Verifiable for Root {
    fn run_verifier(v: &mut Verifier, at: usize) -> Checked {
        v.visit_table(at)?
            .visit_field::<Bytes>("version", slot(0), true)?
            .visit_field::<Bytes>("build tool", slot(1), true)?
            .visit_field::<i64>("blob size", slot(2), false)?
            .visit_field::<i64>("layer size", slot(3), false)?
            .visit_field::<ForwardsUOffset<Toc>>("toc", slot(4), true)?
            .visit_field::<ForwardsUOffset<Info>>("info", slot(5), true)?
            .finish();
        Ok(())
    }
}

impl Verifiable for Toc {
    fn run_verifier(v: &mut Verifier, at: usize) -> Checked {
        v.visit_table(at)?.visit_field::<Tables<Entry>>("entries", slot(0), true)?.finish();
        Ok(())
    }
}

impl Verifiable for Entry {
    fn run_verifier(v: &mut Verifier, at: usize) -> Checked {
        let mut table = v.visit_table(at)?;
        for text in [0, 1, 4, 8, 9, 10] {
            table = table.visit_field::<Bytes>("text", slot(text), true)?;
        }
        for number in [2, 3, 5, 11, 12] {
            table = table.visit_field::<i64>("number", slot(number), false)?;
        }
        table
            .visit_field::<u32>("uid", slot(6), false)?
            .visit_field::<u32>("gid", slot(7), false)?
            .visit_field::<Tables<Record>>("records", slot(13), true)?
            .finish();
        Ok(())
    }
}

impl Verifiable for Record {
    fn run_verifier(v: &mut Verifier, at: usize) -> Checked {
        let table = v.visit_table(at)?.visit_field::<Bytes>("key", slot(0), true)?;
        table.visit_field::<Bytes>("value", slot(1), true)?.finish();
        Ok(())
    }
}

impl Verifiable for Info {
    fn run_verifier(v: &mut Verifier, at: usize) -> Checked {
        v.visit_table(at)?
            .visit_field::<i8>("algorithm", slot(0), false)?
            .visit_field::<i32>("last span", slot(1), false)?
            .visit_field::<ForwardsUOffset<Vector<'static, ForwardsUOffset<&str>>>>("digests", slot(2), true)?
            .visit_field::<Bytes>("zinfo", slot(3), true)?
            .finish();
        Ok(())
    }
}

fn verify(bytes: &[u8]) -> Checked {
    let options = VerifierOptions { max_tables: 1 << 20, ..VerifierOptions::default() };
    <ForwardsUOffset<Root>>::run_verifier(&mut Verifier::new(&options, bytes), 0)
}

proptest! {
    #[test]
    fn the_flatbuffers_verifier_accepts_what_is_written(entries in prop::collection::vec(any_entry(), 0..12)) {
        let (entries, layer_size) = lay_out(entries);
        prop_assert!(verify(&document(&entries, layer_size)).is_ok());
    }

    #[test]
    fn what_the_verifier_accepts_does_not_look_damaged(
        entries in prop::collection::vec(any_entry(), 0..3),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let (entries, layer_size) = lay_out(entries);
        let mut bytes = document(&entries, layer_size);
        let at = at.index(bytes.len());
        bytes[at] = value;
        if verify(&bytes).is_ok() {
            let read = Ztoc::parse(&bytes).and_then(|ztoc| ztoc.entries().try_for_each(|entry| entry.map(drop)));
            prop_assert!(!matches!(read, Err(ZtocError::Damaged { .. })), "{read:?}");
        }
    }
}
