//! The tables of the firmware (SMBIOS, DSP0134), as `GetSystemFirmwareTable` gives them.

/// Facts of the tables; those that are absent there are empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Smbios {
    pub(super) bios_vendor: String,
    pub(super) bios_version: String,
    pub(super) bios_date: String,
    pub(super) vendor: String,
    pub(super) product: String,
    pub(super) serial: String,
    /// As the firmware prints it, with its first three fields little-endian (§7.2.1).
    pub(super) uuid: String,
    pub(super) chassis_asset_tag: String,
}

/// Size of `RawSMBIOSData` before the tables.
const HEAD_BYTES: usize = 8;

impl Smbios {
    /// Parses `RawSMBIOSData`. What is damaged ends the tables.
    pub(super) fn parse(raw: &[u8]) -> Self {
        let mut out = Self::default();
        let mut rest = raw.get(HEAD_BYTES..).unwrap_or_default();
        while let [kind, length, ..] = *rest
            && let Some(formatted) = rest.get(..usize::from(length))
            && formatted.len() >= 4
        {
            let strings = &rest[formatted.len()..];
            // Strings end with NUL, and their list with another.
            let Some(end) = strings.windows(2).position(|pair| pair == [0, 0]) else { return out };
            let text = |at: usize| text(formatted, &strings[..end], at);
            match kind {
                0 => (out.bios_vendor, out.bios_version, out.bios_date) = (text(4), text(5), text(8)),
                1 => {
                    (out.vendor, out.product, out.serial) = (text(4), text(5), text(7));
                    out.uuid = formatted.get(8..24).and_then(uuid).unwrap_or_default();
                }
                3 => out.chassis_asset_tag = text(8),
                // End of the tables.
                127 => return out,
                _ => {}
            }
            rest = &strings[end + 2..];
        }
        out
    }
}

/// The string whose number stands at an offset of the formatted area; 0 stands for none.
fn text(formatted: &[u8], strings: &[u8], at: usize) -> String {
    let number = formatted.get(at).copied().map_or(0, usize::from);
    let string = number.checked_sub(1).and_then(|number| strings.split(|byte| *byte == 0).nth(number));
    String::from_utf8_lossy(string.unwrap_or_default()).trim().to_owned()
}

/// Absent if all bits are the same, which means that there is none.
fn uuid(bytes: &[u8]) -> Option<String> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    if bytes == [0; 16] || bytes == [0xff; 16] {
        return None;
    }
    let [a, b, c, d, e, f, g, h, i, j, rest @ ..] = bytes;
    let hex = |bytes: &[u8]| hex::encode(bytes);
    Some([hex(&[d, c, b, a]), hex(&[f, e]), hex(&[h, g]), hex(&[i, j]), hex(&rest)].join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(kind: u8, formatted: &[u8], strings: &[&str]) -> Vec<u8> {
        let mut out = vec![kind, 4 + formatted.len() as u8, 0, 0];
        out.extend_from_slice(formatted);
        for string in strings {
            out.extend_from_slice(string.as_bytes());
            out.push(0);
        }
        out.extend_from_slice(if strings.is_empty() { &[0, 0] } else { &[0] });
        out
    }

    fn tables() -> Vec<u8> {
        let mut system = vec![1, 2, 0, 3];
        system.extend(1..=16);
        let mut raw = vec![0; HEAD_BYTES];
        raw.extend(table(0, &[1, 2, 0, 0, 3], &["A vendor", "1.2", "01/02/2026"]));
        raw.extend(table(1, &system, &["Microsoft Corporation", "Virtual Machine", "123"]));
        raw.extend(table(2, &[], &[]));
        raw.extend(table(3, &[0, 0, 0, 0, 1], &["7783-7084-3265-9085-8269-3286-77 "]));
        raw.extend(table(127, &[], &[]));
        raw.extend(table(3, &[0, 0, 0, 0, 1], &["behind the end"]));
        raw
    }

    #[test]
    fn each_fact_is_the_string_that_its_number_names() {
        let found = Smbios::parse(&tables());
        assert_eq!((found.bios_vendor.as_str(), found.bios_version.as_str()), ("A vendor", "1.2"));
        assert_eq!((found.vendor.as_str(), found.product.as_str()), ("Microsoft Corporation", "Virtual Machine"));
        assert_eq!((found.serial.as_str(), found.bios_date.as_str()), ("123", "01/02/2026"));
        assert_eq!(found.uuid, "04030201-0605-0807-090a-0b0c0d0e0f10");
        assert_eq!(found.chassis_asset_tag, "7783-7084-3265-9085-8269-3286-77");
    }

    #[test]
    fn tables_that_are_cut_give_what_stands_before() {
        let raw = tables();
        for end in 0..raw.len() {
            drop(Smbios::parse(&raw[..end]));
        }
        assert_eq!(Smbios::parse(&raw[..HEAD_BYTES]), Smbios::default());
        assert_eq!(Smbios::parse(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0]), Smbios::default());
    }
}
