//! Looks into kernel images and ELF files; each function reads only bytes that it has made sure are there.

/// Whether this is an ELF file.
pub(super) fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// Whether this is a 64-bit ELF program that needs no interpreter, and so no library either (`elf(5)`, `PT_INTERP`).
pub(super) fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let headers = || {
        let start = usize::try_from(u64::from_le_bytes(at(elf, 0x20)?)).ok()?;
        let (size, count) = (u16::from_le_bytes(at(elf, 0x36)?), u16::from_le_bytes(at(elf, 0x38)?));
        (0..count)
            .map(|n| Some(u32::from_le_bytes(at(elf, start.checked_add(usize::from(n) * usize::from(size))?)?)))
            .collect::<Option<Vec<u32>>>()
    };
    is_elf(elf) && headers().is_some_and(|types| !types.contains(&PT_INTERP))
}

/// The compressed kernel inside a bzImage (kernel documentation, "The Linux/x86 Boot Protocol", `payload_offset`), without
/// the four bytes of size that the kernel's build puts behind all but gzip's.
pub(super) fn payload(image: &[u8]) -> Option<&[u8]> {
    if at(image, 0x202)? != *b"HdrS" || u16::from_le_bytes(at(image, 0x206)?) < 0x0208 {
        return None;
    }
    // Zero stands for four, for the sake of the oldest loaders.
    let sectors = match image[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let start = ((sectors + 1) * 512).checked_add(offset(image, 0x248)?)?;
    let payload = image.get(start..start.checked_add(offset(image, 0x24c)?)?)?;
    let trailer = if compressor(payload)? == "gzip" { 0 } else { 4 };
    payload.get(..payload.len().checked_sub(trailer)?)
}

/// The program that unpacks what begins like this.
pub(super) fn compressor(bytes: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 6] = [
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x1f\x8b", "gzip"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"BZh", "bzip2"),
        (b"\x5d\0\0", "lzma"),
    ];
    known.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, tool)| *tool)
}

fn at<const N: usize>(bytes: &[u8], start: usize) -> Option<[u8; N]> {
    bytes.get(start..start.checked_add(N)?)?.try_into().ok()
}

fn offset(bytes: &[u8], start: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(at(bytes, start)?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_found_and_a_cut_off_image_has_none() {
        let mut image = vec![0; 0x400];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&8_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&14_u32.to_le_bytes());
        image.extend_from_slice(b"8 bytes.\xfd7zXZ\0....SIZE");
        assert_eq!(payload(&image), Some(&b"\xfd7zXZ\0...."[..]));
        for length in 0..image.len() {
            assert_eq!(payload(&image[..length]), None);
        }
    }
}
