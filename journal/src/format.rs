//! The layout of a journal file: header, flags, object types. All numbers are little-endian.

/// A 128-bit id, such as a boot id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Id(pub [u8; 16]);

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = [0; 32];
        hex::encode_to_slice(self.0, &mut text).expect("32 digits");
        f.write_str(std::str::from_utf8(&text).expect("digits"))
    }
}

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Id {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id)?;
        Ok(Self(id))
    }
}

/// The first bytes of every journal file.
pub(crate) const SIGNATURE: &[u8; 8] = b"LPKSHHRH";
/// Size of the header of the first release.
pub(crate) const HEADER_BYTES_MIN: u64 = 208;
/// Size of the part of the header that is read.
pub(crate) const HEADER_BYTES: usize = 208;

/// Incompatible flags: a reader must know each one that is set.
pub(crate) mod incompatible {
    pub(crate) const XZ: u32 = 1;
    pub(crate) const LZ4: u32 = 2;
    pub(crate) const KEYED_HASH: u32 = 4;
    pub(crate) const ZSTD: u32 = 8;
    pub(crate) const COMPACT: u32 = 16;
    pub(crate) const KNOWN: u32 = XZ | LZ4 | KEYED_HASH | ZSTD | COMPACT;
}

/// Types of objects.
pub(crate) mod object {
    pub(crate) const DATA: u8 = 1;
    pub(crate) const ENTRY: u8 = 3;
    pub(crate) const ENTRY_ARRAY: u8 = 6;
}

/// Size of a data object before its payload, which is eight bytes later in a compact file.
pub(crate) const DATA_BYTES: u64 = 64;
/// Size of an entry before its items.
pub(crate) const ENTRY_BYTES: u64 = 64;
/// Size of an entry array before its items.
pub(crate) const ARRAY_BYTES: u64 = 24;

/// Whether journald is writing the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Closed cleanly; journald may open it again.
    Offline,
    /// Open for writing, or not closed cleanly.
    Online,
    /// Rotated: complete.
    Archived,
}

/// The fields of a journal file's header that readers need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Whether journald writes the file.
    pub state: State,
    /// Random id of the file.
    pub file_id: Id,
    /// Id of the numbering of the file's entries; all files of one journald instance share it.
    pub seqnum_id: Id,
    /// Number of entries.
    pub n_entries: u64,
    /// Sequence number of the first entry.
    pub head_seqnum: u64,
    /// Sequence number of the last entry, or of one that is being written.
    pub tail_seqnum: u64,
    pub(crate) is_compact: bool,
    pub(crate) header_size: u64,
    pub(crate) entry_array_offset: u64,
}

/// Why a journal header cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Another kind of file, or a torn one.
    #[error("it is not a journal file")]
    NotAJournal,
    /// A flag of a later release.
    #[error("its format has features of a later systemd (incompatible flags {0:#x}); update the agent")]
    UnknownFlags(u32),
    /// A header that contradicts itself.
    #[error("its header is damaged: {0}")]
    Damaged(&'static str),
}

/// The little-endian number at an offset; 0 if the buffer is too short. Callers check the length.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |part| u64::from_le_bytes(part.try_into().expect("eight bytes")))
}

/// A little-endian number at an offset of a buffer that contains it.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |part| u32::from_le_bytes(part.try_into().expect("four bytes")))
}

/// An id at an offset of a buffer that contains it.
pub(crate) fn id_at(bytes: &[u8], at: usize) -> Id {
    Id(bytes.get(at..at + 16).map_or([0; 16], |part| part.try_into().expect("sixteen bytes")))
}

impl Header {
    /// Parses the first [`HEADER_BYTES`] of a file.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.len() < HEADER_BYTES || !bytes.starts_with(SIGNATURE) {
            return Err(HeaderError::NotAJournal);
        }
        let flags = u32_at(bytes, 12);
        if flags & !incompatible::KNOWN != 0 {
            return Err(HeaderError::UnknownFlags(flags & !incompatible::KNOWN));
        }
        let state = match bytes[16] {
            0 => State::Offline,
            1 => State::Online,
            2 => State::Archived,
            _ => return Err(HeaderError::Damaged("its state is unknown")),
        };
        let header_size = u64_at(bytes, 88);
        if header_size < HEADER_BYTES_MIN || !header_size.is_multiple_of(8) {
            return Err(HeaderError::Damaged("its stated size is impossible"));
        }
        Ok(Self {
            state,
            file_id: id_at(bytes, 24),
            seqnum_id: id_at(bytes, 72),
            n_entries: u64_at(bytes, 152),
            tail_seqnum: u64_at(bytes, 160),
            head_seqnum: u64_at(bytes, 168),
            is_compact: flags & incompatible::COMPACT != 0,
            header_size,
            entry_array_offset: u64_at(bytes, 176),
        })
    }
}
