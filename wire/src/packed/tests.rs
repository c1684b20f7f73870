//! What holds for packed records of each kind.

use super::Packing;
use crate::{Chunk, Record, codec};

/// Records come out as they went in.
pub(crate) fn assert_unpacks(chunk: &Chunk, expected: &[Record]) {
    assert_eq!((chunk.count(), chunk.entries.len()), (expected.len() as u64, 1));
    assert_eq!(chunk.decode().expect("decodes"), expected);
    let unpacked = codec::unpack(&chunk.encode()).expect("unpacks");
    assert_eq!(codec::outline(&unpacked).expect("records").len(), expected.len());
    assert_eq!(codec::decode_records(&unpacked).expect("decodes"), expected);
}

/// Halves hold the same records. Returns their size, decoded.
pub(crate) fn assert_halves(chunk: &Chunk, expected: &[Record]) -> usize {
    let halves = codec::halve(&chunk.encode()).expect("records");
    if expected.len() == 1 {
        assert_eq!(halves, None);
        return 0;
    }
    let (mut both, mut plain) = (Vec::new(), 0);
    for half in halves.expect("two records have halves") {
        let records = codec::decode_records(&half.bytes).expect("decodes");
        assert_eq!(records.len(), half.count as usize);
        assert!(half.count > 0);
        both.extend(records);
        plain += half.plain;
    }
    assert_eq!(both, expected);
    plain
}

/// Arbitrary input gives an error, never a panic and never more records than stated.
pub(crate) fn assert_survives_damage(chunk: &Chunk, at: usize, byte: u8) {
    let whole = chunk.encode();
    let mut bytes = whole.clone();
    bytes[at % whole.len()] = byte;
    if let (Ok(records), Ok(outline)) = (codec::decode_records(&bytes), codec::outline(&bytes)) {
        assert_eq!(records.len() as u64, outline.iter().map(|item| u64::from(item.count)).sum::<u64>());
    }
    drop((codec::halve(&bytes), codec::unpack(&bytes)));
    if let Some(Ok(records)) = Packing::of(&bytes).map(|(packing, _)| packing.open(usize::MAX)) {
        assert!(records.skip_while(Result::is_ok).count() <= 1, "nothing comes after an error");
    }
    for length in 1..whole.len() {
        assert!(codec::decode_records(&whole[..length]).is_err());
    }
}
