//! Whether KVM runs guests on a node: proven by one, since /dev/kvm can be there
//! and its guests hang.
//!
//! The guest is a few instructions that go where every 64-bit kernel goes first, on
//! to its own page tables, and tell that they came there.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Command, NodeError, NodeTransport};

/// By how much more than twice its time under emulation a guest may take under
/// KVM. With virtualization in the processor it takes less; without, 25 times as long was seen.
const SLOWER: Duration = Duration::from_secs(1);

/// What became of a guest that was started under KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kvm {
    /// It ran.
    Works,
    /// It ran, but much slower than without: the host emulates it.
    Slow,
    /// It was started and did nothing.
    Hangs,
    /// Not even the one that was emulated ran in time.
    Busy,
    /// There is no /dev/kvm.
    Absent,
    /// It could not be started.
    Fails(String),
}

impl std::fmt::Display for Kvm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Works => f.write_str("KVM works"),
            Self::Slow => f.write_str("KVM is slower than emulation"),
            Self::Hangs => f.write_str("KVM hangs"),
            Self::Busy => f.write_str("the node is too busy to tell whether KVM works"),
            Self::Absent => f.write_str("no KVM"),
            Self::Fails(why) => write!(f, "KVM fails: {why}"),
        }
    }
}

impl Kvm {
    /// Whether it may be another answer the next time: it was a matter of time, and
    /// what else the node does takes time too.
    #[must_use]
    pub fn may_change(&self) -> bool {
        match self {
            Self::Slow | Self::Hangs | Self::Busy => true,
            Self::Works | Self::Absent | Self::Fails(_) => false,
        }
    }
}

/// `sh -c GUEST sh ACCELERATOR ARCHITECTURE`: starts the guest. 33: it told that it
/// runs; 124, or with busybox 143: it did not in ten seconds.
///
/// On x86_64 it is a disk of one sector, loaded at 0x7c00 in real mode, which
/// identity-maps 2 MiB (a table each at 0x1000, 0x2000, 0x3000), enters long mode
/// (Intel SDM volume 3, 10.8.5), and writes 0x10 to the port of isa-debug-exit, upon
/// which QEMU ends with status (0x10 << 1) | 1 = 33 (qemu hw/misc/debugexit.c):
///
/// ```text
///         cli; xor ax,ax; mov ds,ax; mov es,ax; cld
///         mov di,0x1000; mov cx,0x3000; rep stosb
///         mov word [0x1000],0x2003; mov word [0x2000],0x3003; mov word [0x3000],0x83
///         mov eax,0x20; mov cr4,eax                           ; PAE
///         mov eax,0x1000; mov cr3,eax
///         mov ecx,0xc0000080; rdmsr; or ax,0x100; wrmsr       ; EFER.LME
///         mov eax,cr0; or eax,0x80000001; mov cr0,eax         ; PG, PE
///         lgdt [gdtr]; jmp 8:long
///   long: mov rax,0x1122334455667788; mov rbx,0x1122334455667778; sub rax,rbx
///         out 0xf4,al; hlt; jmp $-1
///   gdt:  dq 0, 0x00af9a000000ffff
///   gdtr: dw 15; dd gdt
/// ```
///
/// On aarch64 it is a kernel without a header, which maps the first GiB as device
/// and the second, where the memory of `virt` is, as normal memory (a table at
/// 0x40100000; Arm ARM, D8), turns the MMU and the caches on, writes to the PL011, and
/// has PSCI turn the machine off:
///
/// ```text
///         movz x1,#0x4010,lsl 16; movz x2,#0x401; str x2,[x1]           // device
///         movz x2,#0x4000,lsl 16; movk x2,#0x705; str x2,[x1,#8]        // memory
///         movz x2,#0xff00; msr mair_el1,x2
///         movz x2,#0x3519; movk x2,#0x80,lsl 16; msr tcr_el1,x2         // 39 bits, EPD1
///         msr ttbr0_el1,x1; dsb sy; isb
///         mrs x2,sctlr_el1; movz x3,#0x1005; orr x2,x2,x3; msr sctlr_el1,x2; isb
///         movz x1,#0x900,lsl 16; adr x3,text
///   next: ldrb w2,[x3],#1; cbz w2,off; strb w2,[x1]; b next
///   off:  movz x0,#0x8400,lsl 16; movk x0,#8; hvc #0                    // SYSTEM_OFF
///   wait: wfi; b wait
///   text: "works\n", 0
/// ```
const GUEST: &str = r#"
PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin
guest=$(mktemp) || exit 1
trap 'rm -f "$guest"' EXIT
case $2 in
    x86_64)
        printf '%b' \
            '\0372\0061\0300\0216\0330\0216\0300\0374\0277\0000\0020\0271\0000\0060\0363\0252\0307\0006\0000\0020\0003\0040\0307\0006' \
            '\0000\0040\0003\0060\0307\0006\0000\0060\0203\0000\0146\0270\0040\0000\0000\0000\0017\0042\0340\0146\0270\0000\0020\0000' \
            '\0000\0017\0042\0330\0146\0271\0200\0000\0000\0300\0017\0062\0015\0000\0001\0017\0060\0017\0040\0300\0146\0015\0001\0000' \
            '\0000\0200\0017\0042\0300\0017\0001\0026\0210\0174\0352\0127\0174\0010\0000\0110\0270\0210\0167\0146\0125\0104\0063\0042' \
            '\0021\0110\0273\0170\0167\0146\0125\0104\0063\0042\0021\0110\0051\0330\0346\0364\0364\0353\0375\0017\0037\0104\0000\0000' \
            '\0000\0000\0000\0000\0000\0000\0000\0000\0377\0377\0000\0000\0000\0232\0257\0000\0017\0000\0170\0174\0000\0000' >"$guest"
        dd if=/dev/zero of="$guest" bs=1 seek=142 count=368 2>/dev/null
        printf '\125\252' >>"$guest"
        timeout 10 "qemu-system-$2" -machine pc,accel="$1" -m 16 -nodefaults -display none -no-reboot \
            -device isa-debug-exit,iobase=0xf4,iosize=0x4 -drive file="$guest",format=raw,if=ide
        ;;
    aarch64)
        printf '%b' \
            '\0001\0002\0250\0322\0042\0200\0200\0322\0042\0000\0000\0371\0002\0000\0250\0322\0242\0340\0200\0362\0042\0004\0000\0371' \
            '\0002\0340\0237\0322\0002\0242\0030\0325\0042\0243\0206\0322\0002\0020\0240\0362\0102\0040\0030\0325\0001\0040\0030\0325' \
            '\0237\0077\0003\0325\0337\0077\0003\0325\0002\0020\0070\0325\0243\0000\0202\0322\0102\0000\0003\0252\0002\0020\0030\0325' \
            '\0337\0077\0003\0325\0001\0040\0241\0322\0103\0001\0000\0020\0142\0024\0100\0070\0142\0000\0000\0064\0042\0000\0000\0071' \
            '\0375\0377\0377\0027\0000\0200\0260\0322\0000\0001\0200\0362\0002\0000\0000\0324\0177\0040\0003\0325\0377\0377\0377\0027' \
            '\0167\0157\0162\0153\0163\0012\0000' >"$guest"
        said=$(timeout 10 "qemu-system-$2" -machine virt,gic-version=max,accel="$1" -cpu max -m 64 \
            -nodefaults -display none -no-reboot -serial stdio -kernel "$guest" </dev/null)
        status=$?
        [ "$said" != works ] || exit 33
        exit "$status"
        ;;
    *)
        echo "there is no guest for $2" >&2
        exit 1
        ;;
esac
"#;

/// Starts a guest under KVM, and under emulation to compare: there are hosts
/// whose KVM carries a few instructions at a time and no system ever.
pub(super) async fn try_kvm(node: &dyn NodeTransport, arch: &str) -> Result<Kvm, NodeError> {
    let begun = Instant::now();
    let emulated = try_guest(node, "tcg", arch).await?;
    let emulation = begun.elapsed();
    let begun = Instant::now();
    let kvm = try_guest(node, "kvm", arch).await?;
    Ok(compare(kvm, begun.elapsed(), &emulated, emulation))
}

/// What is to be thought of KVM, after two guests and the times that they took.
fn compare(kvm: Kvm, took: Duration, emulated: &Kvm, emulation: Duration) -> Kvm {
    match (kvm, emulated) {
        (Kvm::Works, _) if took <= SLOWER => Kvm::Works,
        (Kvm::Works | Kvm::Hangs, Kvm::Hangs) => Kvm::Busy,
        (Kvm::Works, Kvm::Works) if took > 2 * emulation + SLOWER => Kvm::Slow,
        // There are builds of QEMU that cannot emulate at all.
        (kvm, _) => kvm,
    }
}

/// Starts a guest of an architecture with an accelerator of QEMU.
///
/// # Errors
/// When the node cannot be asked.
pub async fn try_guest(
    node: &dyn NodeTransport,
    accelerator: &str,
    arch: &str,
) -> Result<Kvm, NodeError> {
    let argv = ["sh", "-c", GUEST, "sh", accelerator, arch];
    let output = node.exec(&Command::new(argv)).await?;
    Ok(match output.status {
        Some(33) => Kvm::Works,
        Some(124 | 143) => Kvm::Hangs,
        status => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or_default().trim().to_owned();
            Kvm::Fails(match (said.is_empty(), status) {
                (false, _) => said,
                (true, Some(status)) => format!("QEMU ended with status {status}"),
                (true, None) => "QEMU was killed".to_owned(),
            })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_too_long_beside_other_work_is_no_final_answer() {
        let [short, long] = [1, 9].map(Duration::from_secs);
        let busy = compare(Kvm::Works, long, &Kvm::Hangs, Duration::from_secs(10));
        assert_eq!(busy, Kvm::Busy, "nothing to compare with");
        assert_eq!(compare(Kvm::Works, short, &Kvm::Hangs, long), Kvm::Works);
        assert_eq!(compare(Kvm::Works, long, &Kvm::Works, short), Kvm::Slow);
        assert_eq!(compare(Kvm::Works, long, &Kvm::Works, long), Kvm::Works);
        assert_eq!(compare(Kvm::Hangs, long, &Kvm::Works, short), Kvm::Hangs);
        let denied = Kvm::Fails("Permission denied".to_owned());
        assert_eq!(compare(denied.clone(), short, &Kvm::Hangs, long), denied);
        let no_tcg = Kvm::Fails("invalid accelerator tcg".to_owned());
        assert_eq!(compare(Kvm::Works, long, &no_tcg, short), Kvm::Works);
        assert!(busy.may_change() && Kvm::Hangs.may_change() && Kvm::Slow.may_change());
        assert!(!Kvm::Works.may_change() && !Kvm::Absent.may_change() && !denied.may_change());
    }
}
