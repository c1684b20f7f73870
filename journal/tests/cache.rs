//! Fields that several entries share are decoded once, wherever they are in the file.

mod support;

use std::rc::Rc;
use support::writer::{Codec, Layout, Written, write};
use vedette_journal::{Field, JournalFile};

/// Fields of each entry.
const SHARED: usize = 27;

/// Entries with the same fields come behind many others, which have filled the cache.
#[test]
fn the_fields_of_each_entry_do_not_replace_each_other() {
    for variant in 0..20_usize {
        let shared = |at: usize| format!("SHARED{at}={}", "v".repeat(10 + (at * 7 + variant) % 60)).into_bytes();
        let mut fields: Vec<Vec<Vec<u8>>> = Vec::new();
        for at in 0..SHARED {
            let others = (0..40).map(|other| format!("OTHER{at}_{other}={}", "x".repeat(1 + (other * variant) % 40)));
            let gap = format!("GAP{at}={}", "g".repeat(100 + (at * 7919 * (variant + 1)) % 20_000));
            let entry: Vec<Vec<u8>> =
                [shared(at), gap.into_bytes()].into_iter().chain(others.map(String::into_bytes)).collect();
            fields.extend([entry.clone(), entry.clone(), entry]);
        }
        // Later some come that three entries share.
        fields.extend((0..120).map(|number| {
            let few = (0..20).map(|few| format!("FEW{few}={} {}", number / 3, "z".repeat(few + variant)).into_bytes());
            (0..SHARED).map(shared).chain(few.filter(|_| number >= 60)).collect()
        }));
        let written = (1..).zip(fields).map(|(number, fields)| Written { seqnum: number, at: number, fields });
        let layout = Layout { is_compact: false, codec: Codec::Plain, first_array: 4 };
        let mut file = JournalFile::open(write(layout, &written.collect::<Vec<_>>()).bytes).expect("opens");
        let mut entries: Vec<Vec<Rc<Field>>> = Vec::new();
        while let Some(head) = file.peek() {
            file.advance();
            entries.push(file.fields(&head));
        }
        let anew: Vec<usize> = entries[entries.len() - 110..]
            .windows(2)
            .map(|pair| {
                pair[0].iter().zip(&pair[1]).take(SHARED).filter(|(one, other)| !Rc::ptr_eq(one, other)).count()
            })
            .collect();
        assert_eq!(anew[..40], [0; 40], "{variant}");
        assert!(anew.iter().sum::<usize>() < 20, "{variant}: {anew:?}");
    }
}
