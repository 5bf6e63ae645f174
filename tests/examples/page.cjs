// Uses the page of examples/browser as somebody with a mouse would, in jsdom; prints what is seen.
const {JSDOM} = require('jsdom');

async function until(holds, what) {
  for (let n = 0; n < 1000; n++) {
    if (holds()) return;
    await new Promise((done) => setTimeout(done, 20));
  }
  throw new Error(`not within 20 s: ${what}`);
}

async function main(url) {
  const {window} = await JSDOM.fromURL(url, {
    runScripts: 'dangerously',
    resources: 'usable',
    // Browsers have these; jsdom leaves them to Node.
    beforeParse: (made) => Object.assign(made, {TextDecoder, TextEncoder}),
  });
  const at = (id) => window.document.getElementById(id);
  const listed = () => [...at('actions').children].map((item) => item.firstChild.textContent.trim());
  const add = (action, path) => {
    at('action').value = action;
    at('path').value = path;
    at('new').dispatchEvent(new window.Event('submit', {cancelable: true}));
  };
  await until(() => listed().length, 'a first row');
  const seen = {state: at('state').textContent, first: listed()};
  add(' ', '/here');
  await until(() => at('error').textContent, 'a refusal');
  seen.error = at('error').textContent;
  add('ship', '/there');
  await until(() => listed().length === 2, 'another row');
  seen.added = [listed(), at('error').textContent];
  at('actions').firstChild.querySelector('button').click();
  await until(() => listed().length === 1, 'a row less');
  seen.left = listed();
  console.log(JSON.stringify(seen));
  process.exit(0);
}

main(process.argv[2]).catch((error) => {
  console.error(error);
  process.exit(1);
});
