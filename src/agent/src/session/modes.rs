//! Terminal modes of a pty-req (RFC 4254 section 8), applied to termios.

use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SpecialCharacterIndices as Index, Termios,
};
use russh::Pty;

/// The value of a special character that is switched off.
const DISABLED: u32 = 255;

/// Applies `modes` in order. Those that Linux does not have are passed over, as
/// the RFC asks.
pub fn apply(termios: &mut Termios, modes: &[(Pty, u32)]) {
    for (mode, value) in modes {
        if let Some(index) = special_character(*mode) {
            // 255 means "no character", which Linux writes as 0 (_POSIX_VDISABLE).
            let character = if *value == DISABLED {
                0
            } else {
                u8::try_from(*value).unwrap_or(0)
            };
            if let Some(place) = termios.control_chars.get_mut(index as usize) {
                *place = character;
            }
            continue;
        }
        let on = *value != 0;
        if let Some(flag) = input(*mode) {
            termios.input_flags.set(flag, on);
        } else if let Some(flag) = local(*mode) {
            termios.local_flags.set(flag, on);
        } else if let Some(flag) = output(*mode) {
            termios.output_flags.set(flag, on);
        } else if let Some(flag) = control(*mode) {
            termios.control_flags.set(flag, on);
        } else if let (Pty::TTY_OP_OSPEED, Some(rate)) = (*mode, baud_rate(*value)) {
            // Both directions: Linux reads an input speed of 0 as "the same".
            // (The C library's cfsetospeed cannot be linked statically.)
            let others = termios.control_flags.bits() & !libc::CBAUD;
            termios.control_flags = ControlFlags::from_bits_retain(others | rate);
        }
    }
}

fn special_character(mode: Pty) -> Option<Index> {
    Some(match mode {
        Pty::VINTR => Index::VINTR,
        Pty::VQUIT => Index::VQUIT,
        Pty::VERASE => Index::VERASE,
        Pty::VKILL => Index::VKILL,
        Pty::VEOF => Index::VEOF,
        Pty::VEOL => Index::VEOL,
        Pty::VEOL2 => Index::VEOL2,
        Pty::VSTART => Index::VSTART,
        Pty::VSTOP => Index::VSTOP,
        Pty::VSUSP => Index::VSUSP,
        Pty::VREPRINT => Index::VREPRINT,
        Pty::VWERASE => Index::VWERASE,
        Pty::VLNEXT => Index::VLNEXT,
        Pty::VSWTCH => Index::VSWTC,
        Pty::VDISCARD => Index::VDISCARD,
        _ => return None,
    })
}

fn input(mode: Pty) -> Option<InputFlags> {
    Some(match mode {
        Pty::IGNPAR => InputFlags::IGNPAR,
        Pty::PARMRK => InputFlags::PARMRK,
        Pty::INPCK => InputFlags::INPCK,
        Pty::ISTRIP => InputFlags::ISTRIP,
        Pty::INLCR => InputFlags::INLCR,
        Pty::IGNCR => InputFlags::IGNCR,
        Pty::ICRNL => InputFlags::ICRNL,
        Pty::IUCLC => InputFlags::from_bits_retain(libc::IUCLC),
        Pty::IXON => InputFlags::IXON,
        Pty::IXANY => InputFlags::IXANY,
        Pty::IXOFF => InputFlags::IXOFF,
        Pty::IMAXBEL => InputFlags::IMAXBEL,
        Pty::IUTF8 => InputFlags::IUTF8,
        _ => return None,
    })
}

fn local(mode: Pty) -> Option<LocalFlags> {
    Some(match mode {
        Pty::ISIG => LocalFlags::ISIG,
        Pty::ICANON => LocalFlags::ICANON,
        Pty::XCASE => LocalFlags::from_bits_retain(libc::XCASE),
        Pty::ECHO => LocalFlags::ECHO,
        Pty::ECHOE => LocalFlags::ECHOE,
        Pty::ECHOK => LocalFlags::ECHOK,
        Pty::ECHONL => LocalFlags::ECHONL,
        Pty::NOFLSH => LocalFlags::NOFLSH,
        Pty::TOSTOP => LocalFlags::TOSTOP,
        Pty::IEXTEN => LocalFlags::IEXTEN,
        Pty::ECHOCTL => LocalFlags::ECHOCTL,
        Pty::ECHOKE => LocalFlags::ECHOKE,
        Pty::PENDIN => LocalFlags::PENDIN,
        _ => return None,
    })
}

fn output(mode: Pty) -> Option<OutputFlags> {
    Some(match mode {
        Pty::OPOST => OutputFlags::OPOST,
        Pty::OLCUC => OutputFlags::OLCUC,
        Pty::ONLCR => OutputFlags::ONLCR,
        Pty::OCRNL => OutputFlags::OCRNL,
        Pty::ONOCR => OutputFlags::ONOCR,
        Pty::ONLRET => OutputFlags::ONLRET,
        _ => return None,
    })
}

fn control(mode: Pty) -> Option<ControlFlags> {
    Some(match mode {
        Pty::CS7 => ControlFlags::CS7,
        Pty::CS8 => ControlFlags::CS8,
        Pty::PARENB => ControlFlags::PARENB,
        Pty::PARODD => ControlFlags::PARODD,
        _ => return None,
    })
}

fn baud_rate(bits_per_second: u32) -> Option<libc::tcflag_t> {
    Some(match bits_per_second {
        50 => libc::B50,
        75 => libc::B75,
        110 => libc::B110,
        134 => libc::B134,
        150 => libc::B150,
        200 => libc::B200,
        300 => libc::B300,
        600 => libc::B600,
        1200 => libc::B1200,
        1800 => libc::B1800,
        2400 => libc::B2400,
        4800 => libc::B4800,
        9600 => libc::B9600,
        19200 => libc::B19200,
        38400 => libc::B38400,
        57600 => libc::B57600,
        115_200 => libc::B115200,
        230_400 => libc::B230400,
        _ => return None,
    })
}
