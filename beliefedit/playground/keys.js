// The arrow-down and Enter keys in the field of a finder choose from the list of names below it.
const fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase().trim();

function choose(field, list, step, tries = 200) {
  const before = field.value, typed = fold(before);
  const names = [...list.options].map((option) => fold(option.text));
  const first = names.findIndex((name) => name.includes(typed));
  if (first < 0) { // the names for this text are still to come
    if (tries) setTimeout(() => choose(field, list, step, tries - 1), 50);
    return;
  }
  const full = names[first] === typed && typed !== "";
  const chosen = Math.min(first + (full ? step : 0), names.length - 1);
  const wanted = list.options[chosen].text;
  list.selectedIndex = chosen;
  list.dispatchEvent(new Event("change", { bubbles: true }));
  setTimeout(() => { // while Python is busy, an older list can undo the choice
    const undone = field.value === before && before !== wanted;
    if (tries && undone && [-1, chosen].includes(list.selectedIndex)) {
      choose(field, list, step, Math.max(0, tries - 10));
    }
  }, 500);
}

function pressed(event) {
  const finder = event.target.closest?.(".be-finder");
  const [field, list] = ["input", "select"].map((tag) => finder?.querySelector(tag));
  if (!field || !list || event.isComposing) return;
  const { key, target } = event;
  if (target === field && (key === "ArrowDown" || key === "Enter")) {
    if (key === "ArrowDown") list.focus();
    choose(field, list, key === "ArrowDown" ? 1 : 0);
  } else if (target === list && (key === "Enter" || (key === "ArrowUp" && list.selectedIndex <= 0))) {
    field.focus();
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

export default {
  render({ el }) {
    el.style.display = "none";
    document.addEventListener("keydown", pressed, true);
    return () => document.removeEventListener("keydown", pressed, true);
  },
};
