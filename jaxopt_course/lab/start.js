// The lab starts: the state of the address, or the one that the page was written with.

function load(hash) {
  let wrong;
  [state, wrong] = fromHash(hash);
  refresh({ controls: true });
  note(wrong);
}

requestAnimationFrame(() =>
  setTimeout(() => {
    // the page shows before it computes
    setUp();
    load(location.hash.length > 1 ? location.hash : DATA.state);
  }),
);
