//! The line of `ls -l` that SSH_FXP_NAME carries beside each name.

use std::fs::Metadata;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Half a year, in seconds: older files show their year and no time of day.
const RECENT: i64 = 182 * 86_400;

/// The line for `name`; `owner` and `group` are names or numbers. Times are in UTC.
#[must_use]
pub fn long_name(name: &[u8], metadata: &Metadata, owner: &str, group: &str) -> Vec<u8> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs().cast_signed());
    let mut line = Vec::with_capacity(64 + name.len());
    let _ = write!(
        line,
        "{}{} {:3} {owner:<8} {group:<8} {:8} {} ",
        kind(metadata),
        permissions(metadata.mode()),
        metadata.nlink(),
        metadata.size(),
        date(metadata.mtime(), now),
    );
    line.extend_from_slice(name);
    line
}

fn kind(metadata: &Metadata) -> char {
    let kind = metadata.file_type();
    if kind.is_dir() {
        'd'
    } else if kind.is_symlink() {
        'l'
    } else if kind.is_fifo() {
        'p'
    } else if kind.is_socket() {
        's'
    } else if kind.is_char_device() {
        'c'
    } else if kind.is_block_device() {
        'b'
    } else {
        '-'
    }
}

fn permissions(mode: u32) -> String {
    let triple = |shift: u32, special: bool, letter: char| {
        let bits = mode >> shift;
        let execute = match (special, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        };
        let read = if bits & 4 != 0 { 'r' } else { '-' };
        let write = if bits & 2 != 0 { 'w' } else { '-' };
        [read, write, execute]
    };
    let parts = [
        triple(6, mode & 0o4000 != 0, 's'),
        triple(3, mode & 0o2000 != 0, 's'),
        triple(0, mode & 0o1000 != 0, 't'),
    ];
    parts.iter().flatten().collect()
}

/// `Nov 23 06:56` for a recent time, `Nov 23  2024` for another.
fn date(time: i64, now: i64) -> String {
    let (days, seconds) = (time.div_euclid(86_400), time.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let month = usize::try_from(month - 1)
        .ok()
        .and_then(|index| MONTHS.get(index))
        .unwrap_or(&"???");
    if (now - RECENT..=now).contains(&time) {
        format!(
            "{month} {day:2} {:02}:{:02}",
            seconds / 3600,
            seconds / 60 % 60
        )
    } else {
        format!("{month} {day:2} {year:5}")
    }
}

/// Year, month and day (from 1) of a day counted from 1970-01-01, in the
/// Gregorian calendar. Years are counted from March, so that the leap day is last.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_400_YEARS: i64 = 146_097;
    // From 0000-03-01.
    let days = days + 719_468;
    let era = days.div_euclid(DAYS_400_YEARS);
    let day_of_era = days.rem_euclid(DAYS_400_YEARS);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(-1), (1969, 12, 31));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_780), (2026, 11, 23));
    }

    #[test]
    fn recent_files_show_the_time_and_others_the_year() {
        let now = 20_780 * 86_400 + 25_000;
        assert_eq!(date(now, now), "Nov 23 06:56");
        assert_eq!(date(0, now), "Jan  1  1970");
    }

    #[test]
    fn permissions_read_as_in_ls() {
        assert_eq!(permissions(0o755), "rwxr-xr-x");
        assert_eq!(permissions(0o4755), "rwsr-xr-x");
        assert_eq!(permissions(0o2644), "rw-r-Sr--");
        assert_eq!(permissions(0o1777), "rwxrwxrwt");
    }
}
